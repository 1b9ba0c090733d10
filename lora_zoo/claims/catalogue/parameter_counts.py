"""Numbers of parameters that papers and sources print, against those computed from shapes."""

from typing import NamedTuple

from lora_zoo.analysis.statistics import Interval
from lora_zoo.claims.registry import Computed
from lora_zoo.claims.rule import Status, Verdict
from lora_zoo.core.hyperparameters import counted
from lora_zoo.core.variants import VARIANTS


class PrintedCount(NamedTuple):
    """A count for so many square `matrices` of `width`, as printed; `unit` is that of its last digit."""

    variant: str
    matrices: int
    width: int
    rank: int
    printed: float
    unit: float

    def verdict(self) -> Verdict:
        """Supported if the number from shapes is within one `unit` of the printed one."""
        each = counted(VARIANTS.find(self.variant), (self.width, self.width), {"rank": self.rank})
        total = self.matrices * each
        status = Status.SUPPORTED if abs(total - self.printed) < self.unit else Status.NOT_SUPPORTED
        reason = f"computed from shapes: {self.matrices} x {each:,} = {total:,}; printed {self.printed:,.0f}"
        return Verdict(status, reason, Interval(total, total, total, 1), "parameters", 1)


ROBERTA_BASE = PrintedCount("lora", 24, 768, 8, 0.3e6, 0.1e6)
GPT_3 = PrintedCount("lora", 192, 12288, 4, 18.8e6, 0.1e6)
GPT_2_MEDIUM = PrintedCount("lora", 48, 1024, 4, 0.35e6, 0.01e6)
GPT_2_LARGE = PrintedCount("lora", 72, 1280, 4, 0.77e6, 0.01e6)
VERA_BASE = PrintedCount("vera", 24, 768, 1024, 0.043e6, 0.001e6)
VERA_LARGE = PrintedCount("vera", 48, 1024, 256, 0.061e6, 0.001e6)
TEXT_13B = PrintedCount("lora", 80, 5120, 8, 6.5e6, 0.1e6)
TABLE_13B = TEXT_13B._replace(printed=650e3, unit=10e3)

LORA, VERA, S2 = "2106.09685", "2310.11454", "source S2"
IN_TEXT = "A 13B model, q and v of 40 layers of width 5120, rank 8: 6.5M (the text of S2)"
IN_TABLE = "The same 13B model: 650K (the table of S2)"

for name, paper, where, statement, against, printed in (
    ("roberta-base", LORA, "table 2", "RoBERTa-base, q and v, rank 8: 0.3M", "", ROBERTA_BASE),
    ("gpt-3", LORA, "table 15", "GPT-3, q and v, rank 4: 18.8M", "", GPT_3),
    ("gpt-2-medium", LORA, "table 3", "GPT-2 medium, q and v, rank 4: 0.35M", "", GPT_2_MEDIUM),
    ("gpt-2-large", LORA, "table 3", "GPT-2 large, q and v, rank 4: 0.77M", "", GPT_2_LARGE),
    ("vera-base", VERA, "table 2", "RoBERTa-base, q and v, VeRA of rank 1024: 0.043M", "", VERA_BASE),
    ("vera-large", VERA, "table 2", "RoBERTa-large, q and v, VeRA of rank 256: 0.061M", "", VERA_LARGE),
    ("13b-text", S2, "text; H13", IN_TEXT, "count/13b-table", TEXT_13B),
    ("13b-table", S2, "table; H13", IN_TABLE, "count/13b-text", TABLE_13B),
):
    others = (against,) if against else ()
    Computed(f"count/{name}", paper, where, others, compute=printed.verdict).says(statement)
