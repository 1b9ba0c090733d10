"""CIDEr-D: cosines of n-grams weighed by how rare they are in the references, arXiv:1411.5726."""

import math
from collections import Counter

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references, ngrams, words

LONGEST, SIGMA = 4, 6.0

Vector = dict[tuple[str, ...], float]


@METRICS.register("cider")
class Cider(evaluate.Metric):
    """{"cider": 0..10} of texts, as COCO's script has it: ten times the mean over items, references and n.

    g = tf-idf of the n-grams, idf over items; clipped at the reference's, with exp(-(Δ length)² / 2 6²). The
    words are those of `rouge_l`: lower case and without punctuation, where COCO takes Stanford's tokenizer.
    """

    higher_is_better = True
    range = (0.0, 10.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string")

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        given = [[words(r) for r in rs] for rs in listed_references("cider", references)]
        found = Counter(ngram for rs in given for ngram in {ngram for r in rs for ngram in _counts(r)})
        if len(given) < 2:
            raise ValueError("cider weighs n-grams by the items that have them, and needs two items or more")
        total = 0.0
        for text, rs in zip(predictions, given, strict=True):
            guess = words(text)
            total += sum(_similarity(guess, r, found, len(given)) for r in rs) / len(rs)
        return {"cider": 10 * total / len(given)}


def _similarity(guess: list[str], reference: list[str], found: Counter[tuple[str, ...]], items: int) -> float:
    """The mean over n of the clipped cosine of two texts."""
    one, other = (_weighed(_counts(text), found, items) for text in (guess, reference))
    total = 0.0
    for n in range(1, LONGEST + 1):
        a, b = ({g: w for g, w in vector.items() if len(g) == n} for vector in (one, other))
        norm = math.hypot(*a.values()) * math.hypot(*b.values())
        total += sum(min(w, b.get(g, 0.0)) * b.get(g, 0.0) for g, w in a.items()) / norm if norm else 0.0
    return total / LONGEST * math.exp(-((len(guess) - len(reference)) ** 2) / (2 * SIGMA**2))


def _counts(text: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(ngram for n in range(1, LONGEST + 1) for ngram in ngrams(text, n))


def _weighed(counts: Counter[tuple[str, ...]], found: Counter[tuple[str, ...]], items: int) -> Vector:
    return {g: count * (math.log(items) - math.log(max(found[g], 1))) for g, count in counts.items()}
