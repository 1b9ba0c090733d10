"""Bits: how much of what the references hold a model knows, by its likelihood of each of them."""

import math

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info


@METRICS.register("bits")
class Bits(evaluate.Metric):
    """{"bits": N log2(choices) - sum of nll / ln 2} of the nll (nats) of N references.

    Each reference is one of `choices` that are equally likely to one who knows nothing: who answers so has
    learned 0 bits, who is sure of the right ones all of them, and who is sure of wrong ones less than none.
    The end of a text is a part of its reference: bits that it costs are not learned.
    """

    higher_is_better = True
    reads = "nll"

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "nll", "; choices: the number of answers that are equally likely beforehand")

    def _compute(
        self, predictions: list[float], references: list[float], choices: int | None = None
    ) -> dict[str, float]:
        if isinstance(choices, bool) or not isinstance(choices, int) or choices < 2:
            said = f"got {choices!r}; give task.metric_arguments.bits.choices"
            raise ValueError(f"bits: the number of choices must be an integer of two or more; {said}")
        return {"bits": len(predictions) * math.log2(choices) - math.fsum(predictions) / math.log(2)}
