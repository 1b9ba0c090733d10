"""F1: the harmonic mean of precision and recall."""

import evaluate
from sklearn.metrics import f1_score

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info


@METRICS.register("f1")
class F1(evaluate.Metric):
    """{"f1": 0..1} of integer classes: of class `pos_label`, or by another of scikit-learn's averages."""

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(
            __doc__,
            "int64",
            "; average: binary (default), macro, micro or weighted; pos_label: the class that binary counts",
        )

    def _compute(
        self, predictions: list[int], references: list[int], average: str = "binary", pos_label: int = 1
    ) -> dict[str, float]:
        if average == "binary" and len({*predictions, *references}) > 2:
            raise ValueError(
                "average=binary counts one of two classes, and there are more; give task.metric_arguments."
                "f1.average=macro, micro or weighted"
            )
        f1 = f1_score(references, predictions, average=average, pos_label=pos_label, zero_division=0.0)
        return {"f1": float(f1)}
