"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., ICLR 2024)."""

from collections.abc import Iterator

from lora_zoo.claims.evidence import Missing, Runs
from lora_zoo.claims.forms import as_good, better, ratio
from lora_zoo.claims.hypotheses import Hypothesis, below
from lora_zoo.claims.measures import CountedQuantity
from lora_zoo.claims.registry import Source

PAPER = "2310.11454"
PART = 0.25
MARGIN = 2
"""Points of the metric: the paper's averages on GLUE differ by 1.4 (base) and 0.0 (large)."""
PARAMETERS = CountedQuantity("parameters", "parameters", "trainable")

Source(PAPER, "bakeoff_rank").claim(
    "vera/fewer-parameters",
    "section 4.1, table 2",
    ratio("vera", "lora", below(PART), PARAMETERS),
    as_good("vera", "lora", within=MARGIN),
).says(
    f"With less than {PART:g} of LoRA's parameters, each at its own best rate, VeRA is less than {MARGIN} "
    "points below."
)
Source(PAPER, "vera_parameters").claim(
    "vera/more-per-parameter",
    "section 4.5, figure 3",
    better({"variant": "vera", "rank": max}, {"variant": "vera", "rank": min}),
).says("The greatest shared rank beats the smallest, though each rank costs one parameter a matrix.")


@Source(PAPER, "bakeoff_budget").claim("vera/at-equal-parameters", "section 4.5, figure 3")
def at_equal_parameters(runs: Runs) -> Iterator[Hypothesis]:
    """At about as many parameters (as near as the rank allows), VeRA scores higher than LoRA."""
    part = runs.ratio({"variant": "vera"}, {"variant": "lora"}, "trainable")
    if not part.between(0.8, 1.25).all():
        raise Missing(f"VeRA has {part.mean():.2g} of LoRA's parameters here, not about as many")
    yield from better("vera", "lora")(runs)
