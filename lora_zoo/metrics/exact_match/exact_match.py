"""Exact match: the rate of predictions that are one of their references, up to white space around them."""

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info


@METRICS.register("exact_match")
class ExactMatch(evaluate.Metric):
    """{"exact_match": 0..1} of texts; an item has one reference (a text) or several (a list)."""

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string")

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        allowed = [[item] if isinstance(item, str) else item for item in references]
        right = [p.strip() in {r.strip() for r in rs} for p, rs in zip(predictions, allowed, strict=True)]
        return {"exact_match": sum(right) / len(right)}
