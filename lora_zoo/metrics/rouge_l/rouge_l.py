"""ROUGE-L: the F measure of the longest common subsequence of words, the mean over items."""

from typing import Any

import evaluate
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references, words


class Words(Tokenizer):
    """Words of any script; rouge_score's own knows a to z alone, so that other texts are all alike: empty."""

    def __init__(self, stemmer: bool) -> None:
        self.stem = PorterStemmer().stem if stemmer else str

    def tokenize(self, text: str) -> list[str]:
        return [self.stem(word) if len(word) > 3 else word for word in words(text)]


@METRICS.register("rouge_l")
class RougeL(evaluate.Metric):
    """{"rouge_l": 0..1} of texts; of an item's several references the nearest counts."""

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(
            __doc__,
            "string",
            "; stemmer: whether words count as equal by their stem, false by default; beta: the weight of "
            "recall in F, with the best precision and the best recall of any reference, as COCO's (1.2)",
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        stemmer: bool = False,
        beta: float | None = None,
    ) -> dict[str, float]:
        scorer = RougeScorer(["rougeL"], tokenizer=Words(stemmer))
        given = listed_references("rouge_l", references)
        found = [[scorer.score(r, p)["rougeL"] for r in rs] for p, rs in zip(predictions, given, strict=True)]
        scores = [max(one.fmeasure for one in own) if beta is None else _weighed(own, beta) for own in found]
        return {"rouge_l": sum(scores) / len(scores)}


def _weighed(found: list[Any], beta: float) -> float:
    """(1 + β²) P R / (R + β² P)."""
    precision, recall = max(one.precision for one in found), max(one.recall for one in found)
    below = recall + beta**2 * precision
    return (1 + beta**2) * precision * recall / below if below else 0.0
