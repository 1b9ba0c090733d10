"""Matthews' correlation coefficient: Pearson's correlation of two classifications (CoLA's metric)."""

import evaluate
from sklearn.metrics import matthews_corrcoef

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info


@METRICS.register("matthews_correlation")
class MatthewsCorrelation(evaluate.Metric):
    """{"matthews_correlation": -1..1} of integer classes; 0 where either side is constant."""

    higher_is_better = True
    range = (-1.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "int64")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
