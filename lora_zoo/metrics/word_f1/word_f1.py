"""Word F1: the words that a prediction shares with its reference, whatever their order; the mean over items.

As SQuAD's (arXiv:1606.05250, section 6.1), of words in lower case; articles count.
"""

from collections import Counter

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references, words


@METRICS.register("word_f1")
class WordF1(evaluate.Metric):
    """{"word_f1": 0..1} of texts; of an item's several references the nearest counts."""

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string")

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        given = listed_references("word_f1", references)
        scores = [max(overlap(p, r) for r in rs) for p, rs in zip(predictions, given, strict=True)]
        return {"word_f1": sum(scores) / len(scores)}


def overlap(prediction: str, reference: str) -> float:
    """The harmonic mean of precision and recall over words, repeated ones too; 1 for two empty texts."""
    said, right = Counter(words(prediction)), Counter(words(reference))
    if not said or not right:
        return float(said == right)
    return 2 * (said & right).total() / (said.total() + right.total())
