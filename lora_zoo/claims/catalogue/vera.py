"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., ICLR 2024)."""

from collections.abc import Iterator

from lora_zoo.analysis.claims.reading import Missing, Runs
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Counted, Sampled, above, below

PAPER = "2310.11454"
PART = 0.25
MARGIN = 2.0
"""Points of the metric: the paper's averages on GLUE differ by 1.4 (base) and 0.0 (large)."""


@claim(
    "vera/fewer-parameters",
    paper=PAPER,
    where="section 4.1, table 2",
    says=(
        f"With less than {PART:g} of LoRA's parameters, each at its own best rate, VeRA is less "
        f"than {MARGIN:g} points below."
    ),
    needs="bakeoff_rank",
)
def fewer_parameters(runs: Runs) -> Iterator[Comparison]:
    one, other = {"variant": "vera"}, {"variant": "lora"}
    part = runs.ratio(one, other, "trainable")
    yield Counted("parameters, vera / lora", part, below(PART), "of LoRA's parameters")
    yield Sampled("vera - lora", runs.difference(one, other), above(-MARGIN * runs.point), runs.metric)


@claim(
    "vera/more-per-parameter",
    paper=PAPER,
    where="section 4.5, figure 3",
    says="The greatest shared rank beats the smallest, though each rank costs one parameter a matrix.",
    needs="vera_parameters",
)
def more_per_parameter(runs: Runs) -> Iterator[Comparison]:
    ranks = runs.values("rank")
    one, other = {"variant": "vera", "rank": ranks[-1]}, {"variant": "vera", "rank": ranks[0]}
    label = f"rank {ranks[-1]:g} - rank {ranks[0]:g}"
    yield Sampled(label, runs.difference(one, other), above(0), runs.metric)


@claim(
    "vera/at-equal-parameters",
    paper=PAPER,
    where="section 4.5, figure 3",
    says="At about as many parameters (as near as the rank allows), VeRA scores higher than LoRA.",
    needs="bakeoff_budget",
)
def at_equal_parameters(runs: Runs) -> Iterator[Comparison]:
    one, other = {"variant": "vera"}, {"variant": "lora"}
    ratio = runs.ratio(one, other, "trainable")
    if not ratio.between(0.8, 1.25).all():
        raise Missing(f"VeRA has {ratio.mean():.2g} of LoRA's parameters here, not about as many")
    yield Sampled("vera - lora", runs.difference(one, other), above(0), runs.metric)
