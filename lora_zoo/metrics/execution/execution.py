"""Execution accuracy: the rate of queries that have the reference's result."""

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, rate


@METRICS.register("execution")
class Execution(evaluate.Metric):
    """{"execution": 0..1} of the task's judgement of each query."""

    higher_is_better = True
    range = (0.0, 1.0)
    reads = "execution"

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "judgement")

    def _compute(self, predictions: list[float], references: list[str]) -> dict[str, float]:
        return {"execution": rate(predictions)}
