"""Spearman's rho: how well the predictions order the items, ties at their mean rank (STS-B, SICK)."""

import evaluate
from scipy.stats import spearmanr

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import correlation, info


@METRICS.register("spearman")
class Spearman(evaluate.Metric):
    """{"spearman": -1..1} of numbers; 0 where either side is constant, so that runs stay comparable."""

    higher_is_better = True
    range = (-1.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "float64")

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return correlation("spearman", spearmanr, predictions, references)
