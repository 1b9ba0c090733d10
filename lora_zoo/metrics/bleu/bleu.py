"""BLEU of a corpus as sacreBLEU defines it: 13a tokens, n-grams up to 4, clipped, with a brevity penalty."""

from itertools import zip_longest

import evaluate
import sacrebleu

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references


@METRICS.register("bleu")
class Bleu(evaluate.Metric):
    """{"bleu": 0..100} of texts; an item has one reference (a text) or several, not all equally many."""

    higher_is_better = True
    range = (0.0, 100.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string", "; lowercase: false by default; tokenize: 13a by default")

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        lowercase: bool = False,
        tokenize: str = "13a",
    ) -> dict[str, float]:
        given = listed_references("bleu", references)
        # sacreBLEU wants the k-th reference of every item together, None where an item has fewer
        streams = [list(stream) for stream in zip_longest(*given)]
        bleu = sacrebleu.corpus_bleu(predictions, streams, lowercase=lowercase, tokenize=tokenize, force=True)
        return {"bleu": min(float(bleu.score), 100.0)}
