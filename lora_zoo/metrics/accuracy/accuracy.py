"""Accuracy: the rate of predictions that are the reference."""

import evaluate
import numpy as np

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info


@METRICS.register("accuracy")
class Accuracy(evaluate.Metric):
    """{"accuracy": 0..1} of integer classes."""

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "int64")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        if not len(predictions):
            raise ValueError("accuracy needs items; give one item or more")
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
