"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., ICML 2024)."""

from collections.abc import Iterator

from lora_zoo.analysis.claims.matrices import change_correlation
from lora_zoo.analysis.claims.reading import LR, Runs, by_seed
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import CORRELATION, Comparison, Range, Sampled, above, below, within

PAPER = "2402.09353"
PRINTED = {"full": -0.62, "lora": 0.83, "dora": -0.31}
MARGIN = 0.2
RANKS = "rank=4,8,16,32 task.lr=1e-2,2e-2,4e-2 seed=0,1,2,3,4"


def _correlation(runs: Runs, variant: str, claimed: Range) -> Iterator[Comparison]:
    """Over the query matrices at the end of each run; the paper adds three earlier checkpoints of each."""
    values = runs.of({"variant": variant}, change_correlation)
    yield Sampled(f"{variant}: correlation of ΔM and ΔD", values, claimed, "correlation", CORRELATION)


@claim(
    "dora/full-negative",
    paper=PAPER,
    where="section 3.2, figure 2",
    says="In full fine-tuning, ΔM and ΔD of the query matrices correlate negatively.",
    needs="dora_decomposition",
)
def full_negative(runs: Runs) -> Iterator[Comparison]:
    yield from _correlation(runs, "full", below(0))


@claim(
    "dora/lora-positive",
    paper=PAPER,
    where="section 3.2, figure 2",
    says="In LoRA, ΔM and ΔD of the query matrices correlate positively.",
    needs="dora_decomposition",
)
def lora_positive(runs: Runs) -> Iterator[Comparison]:
    yield from _correlation(runs, "lora", above(0))


@claim(
    "dora/dora-negative",
    paper=PAPER,
    where="section 4.1, figure 2",
    says="In DoRA, ΔM and ΔD of the query matrices correlate negatively.",
    needs="dora_decomposition",
)
def dora_negative(runs: Runs) -> Iterator[Comparison]:
    yield from _correlation(runs, "dora", below(0))


@claim(
    "dora/magnitudes",
    paper=PAPER,
    where="section 3.2, figure 2",
    says=f"These correlations are -0.62 (full), 0.83 (LoRA) and -0.31 (DoRA), within {MARGIN} of each.",
    needs="dora_decomposition",
)
def magnitudes(runs: Runs) -> Iterator[Comparison]:
    for variant, printed in PRINTED.items():
        yield from _correlation(runs, variant, within(printed - MARGIN, min(printed + MARGIN, 1.0)))


@claim(
    "dora/over-lora",
    paper=PAPER,
    where="section 5.1, table 1; H36",
    says="At one rank, each with its own best learning rate, DoRA scores higher than LoRA.",
    needs="bakeoff_rank",
)
def over_lora(runs: Runs) -> Iterator[Comparison]:
    difference = runs.difference({"variant": "dora"}, {"variant": "lora"})
    yield Sampled("dora - lora", difference, above(0), runs.metric)


@claim(
    "dora/half-the-rank",
    paper=PAPER,
    where="section 5.1, table 1; H36",
    says="DoRA at half of LoRA's rank (8 against 16), each at its own best rate, scores higher.",
    sweep=f"+variant=lora,dora {RANKS}",
)
def half_the_rank(runs: Runs) -> Iterator[Comparison]:
    one = runs.of({"variant": "dora", "rank": 8}, tune=[LR])
    other = runs.of({"variant": "lora", "rank": 16}, tune=[LR])
    yield Sampled("dora rank 8 - lora rank 16", (one - other).dropna(), above(0), runs.metric)


@claim(
    "dora/less-rank-sensitive",
    paper=PAPER,
    where="section 5.5, table 15; H36",
    says=(
        "Over ranks 4 to 32, each at its own best rate, LoRA's best and worst score differ more than DoRA's."
    ),
    sweep=f"+variant=lora,dora {RANKS}",
)
def less_rank_sensitive(runs: Runs) -> Iterator[Comparison]:
    ranges = {}
    for variant in ("lora", "dora"):
        scores = {rank: runs.of({"variant": variant, "rank": rank}, tune=[LR]) for rank in (4, 8, 16, 32)}
        table = by_seed(scores)
        ranges[variant] = table.max(axis=1) - table.min(axis=1)
    more = (ranges["lora"] - ranges["dora"]).dropna()
    yield Sampled("range over ranks, lora - dora", more, above(0), runs.metric)
