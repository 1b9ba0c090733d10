"""Exact match: the rate of predictions that are one of their references, up to white space around them."""

import datasets
import evaluate

from lora_zoo.metrics import METRICS


@METRICS.register("exact_match")
class ExactMatch(evaluate.Metric):
    """{"exact_match": 0..1} of texts; an item has one reference (a text) or several (a list)."""

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: one text an item; references: a text or a list of texts an item",
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
        )

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        allowed = [[item] if isinstance(item, str) else item for item in references]
        right = [p.strip() in {r.strip() for r in rs} for p, rs in zip(predictions, allowed, strict=True)]
        return {"exact_match": sum(right) / len(right)}
