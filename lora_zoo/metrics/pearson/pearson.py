"""Pearson's r: how linear the relation of prediction and reference is (STS-B, SICK)."""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr

from lora_zoo.metrics import METRICS


@METRICS.register("pearson")
class Pearson(evaluate.Metric):
    """{"pearson": -1..1} of numbers; 0 where either side is constant, so that runs stay comparable."""

    higher_is_better = True
    range = (-1.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: one number an item, two items or more",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        if len(predictions) < 2:
            raise ValueError(f"pearson needs two items or more; got {len(predictions)}")
        if not np.ptp(predictions) or not np.ptp(references):
            return {"pearson": 0.0}
        return {"pearson": float(pearsonr(predictions, references).statistic)}
