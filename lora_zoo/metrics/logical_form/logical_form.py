"""Logical form accuracy: the rate of queries that are the reference's, but for the order of conditions."""

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, rate


@METRICS.register("logical_form")
class LogicalForm(evaluate.Metric):
    """{"logical_form": 0..1} of the task's judgement of each query."""

    higher_is_better = True
    range = (0.0, 1.0)
    reads = "logical_form"

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "judgement")

    def _compute(self, predictions: list[float], references: list[str]) -> dict[str, float]:
        return {"logical_form": rate(predictions)}
