"""BLEU of a corpus as sacreBLEU defines it: 13a tokens, n-grams up to 4, clipped, with a brevity penalty."""

from itertools import zip_longest

import datasets
import evaluate
import sacrebleu

from lora_zoo.metrics import METRICS


@METRICS.register("bleu")
class Bleu(evaluate.Metric):
    """{"bleu": 0..100} of texts; an item has one reference (a text) or several, not all equally many."""

    higher_is_better = True
    range = (0.0, 100.0)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: one text an item; references: a text or a list of texts "
            "an item; lowercase: false by default; tokenize: 13a by default",
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        lowercase: bool = False,
        tokenize: str = "13a",
    ) -> dict[str, float]:
        given = [[item] if isinstance(item, str) else list(item) for item in references]
        if [] in given:
            raise ValueError(f"bleu: item {given.index([])} has no reference; it needs one or more")
        # sacreBLEU wants the k-th reference of every item together, None where an item has fewer
        streams = [list(stream) for stream in zip_longest(*given)]
        bleu = sacrebleu.corpus_bleu(predictions, streams, lowercase=lowercase, tokenize=tokenize, force=True)
        return {"bleu": min(float(bleu.score), 100.0)}
