"""VeRA: the claim that asks for about as many parameters first."""

from collections.abc import Iterator

from lora_zoo.claims.evidence import Missing, Runs
from lora_zoo.claims.forms import difference
from lora_zoo.claims.hypotheses import Hypothesis, above
from lora_zoo.claims.registry import measured


@measured("vera/at-equal-parameters", "2310.11454", "section 4.5, figure 3", experiment="bakeoff_budget")
def at_equal_parameters(runs: Runs) -> Iterator[Hypothesis]:
    """At about as many parameters (as near as the rank allows), VeRA scores higher than LoRA."""
    part = runs.ratio({"variant": "vera"}, {"variant": "lora"}, "trainable")
    if not part.between(0.8, 1.25).all():
        raise Missing(f"VeRA has {part.mean():.2g} of LoRA's parameters here, not about as many")
    yield from difference(["vera", "lora"], above(0))(runs)
