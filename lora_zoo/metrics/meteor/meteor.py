"""METEOR of 2007 by NLTK: words matched by form, stem and synonym, and the pieces that they are in."""

from typing import Any

import evaluate
from nltk.corpus import wordnet
from nltk.translate.meteor_score import meteor_score

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references, words


class NoSynonyms:
    """Stands for WordNet where words match by form and stem alone."""

    def synsets(self, word: str) -> list[Any]:
        return []


@METRICS.register("meteor")
class Meteor(evaluate.Metric):
    """{"meteor": 0..1} of texts, the mean over items; of several references the nearest counts.

    The papers on E2E, DART and WebNLG report METEOR 1.5, a Java program that knows paraphrases, too, whose
    numbers are others.
    """

    higher_is_better = True

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string", "; synonyms: true by default, for which NLTK needs its WordNet")

    def _compute(
        self, predictions: list[str], references: list[str] | list[list[str]], synonyms: bool = True
    ) -> dict[str, float]:
        known: Any = wordnet if synonyms else NoSynonyms()
        if synonyms:
            try:
                wordnet.ensure_loaded()
            except LookupError as missing:
                raise ValueError(
                    "meteor: NLTK's WordNet is not here; python -m nltk.downloader wordnet fetches it, "
                    "task.metric_arguments.meteor.synonyms=false does without"
                ) from missing
        given = listed_references("meteor", references)
        pairs = zip(predictions, given, strict=True)
        scores = [meteor_score([words(r) for r in rs], words(p), wordnet=known) for p, rs in pairs]
        return {"meteor": float(sum(scores) / len(scores))}
