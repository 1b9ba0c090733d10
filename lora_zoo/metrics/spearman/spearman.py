"""Spearman's rho: how well the predictions order the items, ties at their mean rank (STS-B, SICK)."""

import datasets
import evaluate
import numpy as np
from scipy.stats import spearmanr

from lora_zoo.metrics import METRICS


@METRICS.register("spearman")
class Spearman(evaluate.Metric):
    """{"spearman": -1..1} of numbers; 0 where either side is constant, so that runs stay comparable."""

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
            raise ValueError(f"spearman needs two items or more; got {len(predictions)}")
        if not np.ptp(predictions) or not np.ptp(references):
            return {"spearman": 0.0}
        return {"spearman": float(spearmanr(predictions, references).statistic)}
