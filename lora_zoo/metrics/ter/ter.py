"""Translation edit rate of a corpus, as sacreBLEU computes it: edits by the length of references."""

from itertools import zip_longest

import evaluate
import sacrebleu

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references


@METRICS.register("ter")
class Ter(evaluate.Metric):
    """{"ter": 0 or more, in percent} of texts in lower case; of several references the nearest counts."""

    higher_is_better = False

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string")

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        streams = [list(stream) for stream in zip_longest(*listed_references("ter", references))]
        return {"ter": float(sacrebleu.corpus_ter(predictions, streams).score)}
