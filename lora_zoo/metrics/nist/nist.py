"""NIST of a corpus, as mteval-v13a computes it: n-grams up to 5, each by what it tells, of all references.

Doddington, Automatic evaluation of machine translation quality using n-gram co-occurrence statistics, 2002.
"""

import math
from collections import Counter

import evaluate
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references, ngrams

LONGEST = 5
_BETA = math.log(0.5) / math.log(1.5) ** 2  # two thirds of the references' length halve the score


@METRICS.register("nist")
class Nist(evaluate.Metric):
    """{"nist": 0 or more} of texts in lower case, in 13a tokens; an item has one reference or several.

    Σ_n Σ_hits info(ngram) / #ngrams, info = log2(#ngram without its last word / #ngram) over all references,
    hits clipped by the reference that has most; times a penalty for less than the references' mean length.
    """

    higher_is_better = True

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string")

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        tokens = Tokenizer13a()
        guesses = [tokens(text.lower()).split() for text in predictions]
        given = [[tokens(r.lower()).split() for r in rs] for rs in listed_references("nist", references)]
        seen = Counter(
            ngram for rs in given for r in rs for n in range(LONGEST + 1) for ngram in ngrams(r, n)
        )
        total = 0.0
        for n in range(1, LONGEST + 1):
            told, made = 0.0, 0
            for guess, rs in zip(guesses, given, strict=True):
                own = Counter(ngrams(guess, n))
                most = Counter[tuple[str, ...]]()
                for r in rs:
                    most |= Counter(ngrams(r, n))
                told += sum(math.log2(seen[g[:-1]] / seen[g]) * hits for g, hits in (own & most).items())
                made += sum(own.values())
            total += told / made if made else 0.0
        length = sum(sum(map(len, rs)) / len(rs) for rs in given)
        ratio = sum(map(len, guesses)) / length if length else 1.0
        penalty = math.exp(_BETA * math.log(ratio) ** 2) if 0 < ratio < 1 else min(ratio, 1.0)
        return {"nist": total * penalty}
