"""rsLoRA: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski, 2023)."""

from collections.abc import Iterator

from lora_zoo.analysis.claims.reading import Runs, gradient_norm, slope
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Range, Sampled, above, below, within

PAPER = "2312.03732"
HALFWAY = 0.25
"""Halfway between the exponents of theorem 3.2: -1/2 for α/r, 0 for α/√r."""


def _exponent(runs: Runs, variant: str, claimed: Range) -> Iterator[Comparison]:
    norms = {rank: runs.of({"variant": variant, "rank": rank}, gradient_norm) for rank in runs.values("rank")}
    label = f"{variant}: exponent of the gradient norm in r"
    yield Sampled(label, slope(norms), claimed, "exponent of r")


def _gain(runs: Runs, variant: str, claimed: Range) -> Iterator[Comparison]:
    ranks = runs.values("rank")
    difference = runs.difference(
        {"variant": variant, "rank": ranks[-1]}, {"variant": variant, "rank": ranks[0]}
    )
    yield Sampled(f"{variant} rank {ranks[-1]:g} - rank {ranks[0]:g}", difference, claimed, runs.metric)


@claim(
    "rslora/gradients-of-lora-fall",
    paper=PAPER,
    where="theorem 3.2, figure 3; H10",
    says=f"With α/r, the mean gradient norm of training falls with rank: as r^x with x below -{HALFWAY}.",
    needs="rslora_ranks",
)
def gradients_of_lora_fall(runs: Runs) -> Iterator[Comparison]:
    yield from _exponent(runs, "lora", below(-HALFWAY))


@claim(
    "rslora/gradients-stay",
    paper=PAPER,
    where="theorem 3.2, figure 3",
    says=f"With α/√r, the mean gradient norm of training keeps its order: r^x with |x| below {HALFWAY}.",
    needs="rslora_ranks",
)
def gradients_stay(runs: Runs) -> Iterator[Comparison]:
    yield from _exponent(runs, "rslora", within(-HALFWAY, HALFWAY))


@claim(
    "rslora/rank-pays",
    paper=PAPER,
    where="section 4, figure 2",
    says="With α/√r, the greatest rank scores higher than the smallest.",
    needs="rslora_ranks",
)
def rank_pays(runs: Runs) -> Iterator[Comparison]:
    yield from _gain(runs, "rslora", above(0))


@claim(
    "rslora/rank-does-not-pay-in-lora",
    paper=PAPER,
    where="section 4, figure 2",
    says="With α/r, the greatest rank scores less than 1 point above the smallest.",
    needs="rslora_ranks",
)
def rank_does_not_pay_in_lora(runs: Runs) -> Iterator[Comparison]:
    yield from _gain(runs, "lora", below(runs.point))


@claim(
    "rslora/only-with-the-root",
    paper=PAPER,
    where="section 4, figure 2",
    says="From the smallest rank to the greatest, the training loss falls more with α/√r than with α/r.",
    needs="rslora_ranks",
)
def only_with_the_root(runs: Runs) -> Iterator[Comparison]:
    ranks = runs.values("rank")
    falls = {
        variant: runs.difference(
            {"variant": variant, "rank": ranks[0]}, {"variant": variant, "rank": ranks[-1]}, "loss"
        )
        for variant in ("rslora", "lora")
    }
    more = (falls["rslora"] - falls["lora"]).dropna()
    yield Sampled("fall of the loss, rslora - lora", more, above(0), "nats a token")
