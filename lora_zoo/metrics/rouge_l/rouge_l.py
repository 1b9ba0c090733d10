"""ROUGE-L: the F measure of the longest common subsequence of words, the mean over items."""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

from lora_zoo.metrics import METRICS


@METRICS.register("rouge_l")
class RougeL(evaluate.Metric):
    """{"rouge_l": 0..1} of texts; of an item's several references the nearest counts."""

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: one text an item; references: a text or a list of texts "
            "an item; stemmer: whether words count as equal by their stem, false by default",
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
        )

    def _compute(
        self, predictions: list[str], references: list[str] | list[list[str]], stemmer: bool = False
    ) -> dict[str, float]:
        scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
        given = [[item] if isinstance(item, str) else list(item) for item in references]
        if [] in given:
            raise ValueError(f"rouge_l: item {given.index([])} has no reference; it needs one or more")
        scores = [
            scorer.score_multi(rs, p)["rougeL"].fmeasure for p, rs in zip(predictions, given, strict=True)
        ]
        return {"rouge_l": sum(scores) / len(scores)}
