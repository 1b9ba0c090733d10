"""LoRA vs Full Fine-tuning: An Illusion of Equivalence (Shuttleworth et al., 2024): intruder dimensions.

One of the first 10 left singular vectors of W' is an intruder where no left singular vector of W has a |cos|
of 0.5 with it. Runs count by the sum over the matrices of attention and feed-forward: the embeddings, which
full fine-tuning changes as well, have no LoRA to be compared with. LoRA has α = 8 at every rank, the first of
the paper's two settings, where nothing else is said.
"""

from collections.abc import Iterator
from itertools import pairwise

import pandas as pd

from lora_zoo.analysis.claims.adalora import ATTENTION, FEED_FORWARD
from lora_zoo.analysis.claims.matrices import mean_of, total_of
from lora_zoo.analysis.claims.reading import Missing, Runs, by_seed, forgotten
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import CORRELATION, Comparison, Counted, Sampled, above, below

PAPER = "2410.21228"
NEEDS = "intruders"
MATRICES = ATTENTION + FEED_FORWARD
INTRUDERS = total_of("intruders", "intruders", MATRICES)
EFFECTIVE_RANK = mean_of("spectra", "effective_rank", MATRICES)
ALPHA = 8.0
LORA, FULL = {"variant": "lora", "alpha": ALPHA}, {"variant": "full"}
SMALL = 16
"""The greatest rank at which the paper always finds intruders."""


@claim(
    "intruders/lora-has-some",
    paper=PAPER,
    where="section 3, figure 4",
    says=f"At each rank up to {SMALL}, every run of LoRA has intruder dimensions.",
    needs=NEEDS,
)
def lora_has_some(runs: Runs) -> Iterator[Comparison]:
    for rank in (rank for rank in runs.values("rank") if rank <= SMALL):
        count = runs.of(LORA | {"rank": rank}, INTRUDERS)
        yield Counted(f"lora rank {rank:g}: intruder dimensions", count, above(0), "intruders")


@claim(
    "intruders/full-has-none",
    paper=PAPER,
    where="section 3, figure 4",
    says="No run of full fine-tuning has an intruder dimension.",
    needs=NEEDS,
)
def full_has_none(runs: Runs) -> Iterator[Comparison]:
    yield Counted("full: intruder dimensions", runs.of(FULL, INTRUDERS), below(1), "intruders")


@claim(
    "intruders/fall-with-rank",
    paper=PAPER,
    where="section 3, figure 4",
    says="From each rank of LoRA that was run to the next, the number of intruder dimensions falls.",
    needs=NEEDS,
)
def fall_with_rank(runs: Runs) -> Iterator[Comparison]:
    for less, more in pairwise(runs.values("rank")):
        fall = runs.difference(LORA | {"rank": less}, LORA | {"rank": more}, INTRUDERS)
        yield Sampled(f"intruders, rank {less:g} - rank {more:g}", fall, above(0), "intruders")


@claim(
    "intruders/fewer-with-alpha",
    paper=PAPER,
    where="section 3, figure 4",
    says="At each rank over 8, LoRA has fewer intruders where α grows with the rank than where it is 8.",
    needs=NEEDS,
)
def fewer_with_alpha(runs: Runs) -> Iterator[Comparison]:
    """The paper's α is 2 r; here it is r, the scale of every other experiment."""
    for rank in (rank for rank in runs.values("rank") if rank > ALPHA):
        grown = LORA | {"rank": rank, "alpha": rank}
        fewer = runs.difference(LORA | {"rank": rank}, grown, INTRUDERS)
        yield Sampled(f"rank {rank:g}: intruders, α = 8 - α = r", fewer, above(0), "intruders")


@claim(
    "intruders/full-has-more-ranks",
    paper=PAPER,
    where="section 3",
    says="At each rank, the ΔW of full fine-tuning has a greater effective rank than LoRA's.",
    needs=NEEDS,
)
def full_has_more_ranks(runs: Runs) -> Iterator[Comparison]:
    for rank in runs.values("rank"):
        more = runs.difference(FULL, LORA | {"rank": rank}, EFFECTIVE_RANK)
        yield Sampled(f"effective rank, full - lora rank {rank:g}", more, above(0), "effective ranks")


@claim(
    "intruders/forget",
    paper=PAPER,
    where="section 4",
    says="Over the ranks of LoRA, the loss on text of pretraining grows with the number of intruders.",
    needs=NEEDS,
)
def forget(runs: Runs) -> Iterator[Comparison]:
    """By seed, Pearson's correlation over the ranks; NaN where all have as many."""
    cells = {rank: LORA | {"rank": rank} for rank in runs.values("rank")}
    number, growth = (
        by_seed({rank: runs.of(cell, what) for rank, cell in cells.items()})
        for what in (INTRUDERS, forgotten)
    )
    if len(cells) < 3:
        raise Missing(f"{len(cells)} ranks are too few for a correlation")
    found: pd.Series = number.corrwith(growth, axis=1).dropna()
    if found.empty:
        raise Missing("the ranks of LoRA do not differ in intruders and forgetting")
    yield Sampled("intruders and growth of the pretraining loss", found, above(0), "correlation", CORRELATION)
