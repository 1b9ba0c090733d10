"""LoRA vs Full Fine-tuning: An Illusion of Equivalence (Shuttleworth et al., 2024): intruder dimensions.

One of the first 10 left singular vectors of W' is an intruder where no left singular vector of W has a |cos|
of 0.5 with it. Runs count by the sum over the matrices of attention and feed-forward: the embeddings, which
full fine-tuning changes as well, have no LoRA to be compared with. LoRA has α = 8 at every rank, the first of
the paper's two settings, where nothing else is said.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from lora_zoo.claims.catalogue.adalora import ATTENTION, FEED_FORWARD
from lora_zoo.claims.evidence import Missing, Runs, aligned
from lora_zoo.claims.forms import better, each, lies, lower
from lora_zoo.claims.hypotheses import FISHER_Z, Hypothesis, Sampled, above, below
from lora_zoo.claims.measures import FORGOTTEN, CountedQuantity, Quantity, mean_of, total_of
from lora_zoo.claims.registry import Source

MATRICES = ATTENTION + FEED_FORWARD
INTRUDERS = CountedQuantity("intruders", "intruders", total_of("intruders", "intruders", MATRICES))
EFFECTIVE_RANK = Quantity("effective rank", "effective ranks", mean_of("spectra", "effective_rank", MATRICES))
ALPHA = 8.0
SMALL = 16
"""The greatest rank at which the paper always finds intruders."""

intruders = Source("2410.21228", "intruders")


def lora(rank: float, alpha: float = ALPHA) -> dict[str, Any]:
    return {"variant": "lora", "alpha": alpha, "rank": rank}


intruders.claim(
    "intruders/lora-has-some",
    "section 3, figure 4",
    each(
        "rank",
        lambda r: lies(lora(r), above(0), INTRUDERS),
        lambda ranks: [r for r in ranks if r <= SMALL],
    ),
).says(f"At each rank up to {SMALL}, every run of LoRA has intruder dimensions.")
intruders.claim("intruders/full-has-none", "section 3, figure 4", lies("full", below(1), INTRUDERS)).says(
    "No run of full fine-tuning has an intruder dimension."
)
intruders.claim(
    "intruders/fall-with-rank",
    "section 3, figure 4",
    each("rank", lambda pair: lower(lora(pair[1]), lora(pair[0]), of=INTRUDERS), pairwise),
).says("From each rank of LoRA that was run to the next, the number of intruder dimensions falls.")

# The paper's α is 2 r; here it is r, the scale of every other experiment.
intruders.claim(
    "intruders/fewer-with-alpha",
    "section 3, figure 4",
    each(
        "rank",
        lambda r: lower(lora(r, r), lora(r), of=INTRUDERS),
        lambda ranks: [r for r in ranks if r > ALPHA],
    ),
).says("At each rank over 8, LoRA has fewer intruders where α grows with the rank than where it is 8.")
intruders.claim(
    "intruders/full-has-more-ranks",
    "section 3",
    each("rank", lambda rank: better("full", lora(rank), of=EFFECTIVE_RANK)),
).says("At each rank, the ΔW of full fine-tuning has a greater effective rank than LoRA's.")


@intruders.claim("intruders/forget", "section 4")
def forget(runs: Runs) -> Iterator[Hypothesis]:
    """Over the ranks of LoRA, the loss on text of pretraining grows with the number of intruders.

    By seed, Pearson's correlation over the ranks; NaN where all have as many.
    """
    ranks = runs.levels("rank")
    number, growth = (
        aligned({rank: runs.by_seed(lora(rank), quantity.of) for rank in ranks})
        for quantity in (INTRUDERS, FORGOTTEN)
    )
    if len(ranks) < 3:
        raise Missing(f"{len(ranks)} ranks are too few for a correlation")
    found = number.corrwith(growth, axis=1).dropna()
    if found.empty:
        raise Missing("the ranks of LoRA do not differ in intruders and forgetting")
    yield Sampled("intruders and growth of the pretraining loss", found, above(0), "correlation", FISHER_Z)
