"""LoRA, section 7.3 and table 7: how ΔW compares to W.

‖UᵀWVᵀ‖_F is compared for U, V the first singular vectors, as many as the rank, of ΔW (`own`), of W (`base`)
and at random (`random`, in closed form). Each run counts by the mean over its query matrices; the paper looks
at one of them, of layer 48 of 96.
"""

from collections.abc import Iterator

from lora_zoo.analysis.claims.lora import PAPER
from lora_zoo.analysis.claims.matrices import mean_of
from lora_zoo.analysis.claims.reading import Runs
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import RATIO, Comparison, Range, Sampled, above, below, within

NEEDS = "lora_table7"
TABLE = "amplification"
FACTOR = mean_of(TABLE, "factor", ["q"])
PRINTED = {4: 6.91 / 0.32, 64: 3.57 / 1.90}
TIMES = 1.5
PART = 0.1


def _at_each_rank(runs: Runs, formula: str, claimed: Range, label: str, unit: str) -> Iterator[Comparison]:
    for rank in runs.values("rank"):
        values = runs.of({"rank": rank}, mean_of(TABLE, formula, ["q"]))
        yield Sampled(f"rank {rank:g}: {label}", values, claimed, unit)


@claim(
    "lora/change-along-w",
    paper=PAPER,
    where="section 7.3, table 7",
    says="At each rank, W is larger in the directions of q's ΔW than in random ones: the ratio is above 1.",
    needs=NEEDS,
)
def change_along_w(runs: Runs) -> Iterator[Comparison]:
    yield from _at_each_rank(runs, "own / random", above(1), "‖UᵀWV‖ along ΔW / at random", "times")


@claim(
    "lora/change-off-the-top",
    paper=PAPER,
    where="section 7.3, table 7",
    says=(
        f"At each rank, W is small in the directions of q's ΔW: less than {PART:g} of the way from random "
        "directions to its own."
    ),
    needs=NEEDS,
)
def change_off_the_top(runs: Runs) -> Iterator[Comparison]:
    """In the paper 0.014 and 0.042. Random directions alone reach rank / width of ‖W‖_F: these are off."""
    formula = "(own - random) / (base - random)"
    yield from _at_each_rank(runs, formula, below(PART), "way from random to W's own", "of the way")


@claim(
    "lora/amplifies",
    paper=PAPER,
    where="section 7.3, table 7",
    says="At each rank, q's ΔW amplifies its directions: ‖ΔW‖ is greater than what W has there.",
    needs=NEEDS,
)
def amplifies(runs: Runs) -> Iterator[Comparison]:
    yield from _at_each_rank(runs, "factor", above(1), "amplification factor", "times")


@claim(
    "lora/amplifies-more-at-rank-4",
    paper=PAPER,
    where="section 7.3, table 7",
    says="The amplification factor of q's ΔW is greater at rank 4 than at rank 64.",
    needs=NEEDS,
)
def amplifies_more_at_rank_4(runs: Runs) -> Iterator[Comparison]:
    ratio = runs.ratio({"rank": 4}, {"rank": 64}, FACTOR)
    yield Sampled("amplification factor, rank 4 / rank 64", ratio, above(1), "times", RATIO)


@claim(
    "lora/amplification-factors",
    paper=PAPER,
    where="section 7.3, table 7",
    says=f"The factors of q's ΔW are 21.5 at rank 4 and 1.9 at rank 64, each within {TIMES:g} times.",
    needs=NEEDS,
)
def amplification_factors(runs: Runs) -> Iterator[Comparison]:
    for rank, printed in PRINTED.items():
        claimed = within(printed / TIMES, printed * TIMES)
        yield Sampled(
            f"amplification factor at rank {rank}", runs.of({"rank": rank}, FACTOR), claimed, "times"
        )
