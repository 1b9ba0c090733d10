"""Numbers of parameters that papers and sources print, against those computed from shapes."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from lora_zoo.adapters.registry import counted, find_variant
from lora_zoo.analysis.claims.registry import Computed, enter
from lora_zoo.analysis.claims.verdicts import Status, Verdict
from lora_zoo.analysis.statistics import Interval


class Count(NamedTuple):
    """`matrices` square ones of `width`; a count is right if it rounds to what is printed, to `unit`."""

    says: str
    paper: str
    where: str
    variant: str
    matrices: int
    width: int
    hyper: Mapping[str, Any]
    printed: float
    unit: float
    against: tuple[str, ...] = ()


COUNTS = {
    "roberta-base": Count(
        "RoBERTa-base, q and v, rank 8: 0.3M",
        "2106.09685",
        "table 2",
        "lora",
        24,
        768,
        {"rank": 8},
        0.3e6,
        0.1e6,
    ),
    "gpt-3": Count(
        "GPT-3, q and v, rank 4: 18.8M",
        "2106.09685",
        "table 15",
        "lora",
        192,
        12288,
        {"rank": 4},
        18.8e6,
        0.1e6,
    ),
    "gpt-2-medium": Count(
        "GPT-2 medium, q and v, rank 4: 0.35M",
        *("2106.09685", "table 3", "lora", 48, 1024, {"rank": 4}, 0.35e6, 0.01e6),
    ),
    "gpt-2-large": Count(
        "GPT-2 large, q and v, rank 4: 0.77M",
        *("2106.09685", "table 3", "lora", 72, 1280, {"rank": 4}, 0.77e6, 0.01e6),
    ),
    "vera-base": Count(
        "RoBERTa-base, q and v, VeRA of rank 1024: 0.043M",
        *("2310.11454", "table 2", "vera", 24, 768, {"rank": 1024}, 0.043e6, 0.001e6),
    ),
    "vera-large": Count(
        "RoBERTa-large, q and v, VeRA of rank 256: 0.061M",
        *("2310.11454", "table 2", "vera", 48, 1024, {"rank": 256}, 0.061e6, 0.001e6),
    ),
    "13b-text": Count(
        "A 13B model, q and v of 40 layers of width 5120, rank 8: 6.5M (the text of S2)",
        *("source S2", "text; H13", "lora", 80, 5120, {"rank": 8}, 6.5e6, 0.1e6, ("count/13b-table",)),
    ),
    "13b-table": Count(
        "The same 13B model: 650K (the table of S2)",
        *("source S2", "table; H13", "lora", 80, 5120, {"rank": 8}, 650e3, 10e3, ("count/13b-text",)),
    ),
}


def counting(count: Count) -> Verdict:
    """Supported if the number from shapes is within one `unit`, the last printed digit, of "
    "the printed one."""
    each = counted(find_variant(count.variant), (count.width, count.width), count.hyper)
    total = count.matrices * each
    right = abs(total - count.printed) < count.unit
    said = f"computed from shapes: {count.matrices} x {each:,} = {total:,}; printed {count.printed:,.0f}"
    status = Status.SUPPORTED if right else Status.NOT_SUPPORTED
    return Verdict(status, said, Interval(total, total, total, 1), "parameters", 1)


for name, count in COUNTS.items():
    said = (count.paper, count.where, count.says, count.against)
    enter(Computed(f"count/{name}", *said, compute=partial(counting, count)))
