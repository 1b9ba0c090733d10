"""The inputs of the metrics here: classes, numbers or texts, and the forms that they share."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import regex

INPUTS = {
    "int64": "predictions, references: one integer class an item",
    "float64": "predictions, references: one number an item, two items or more",
    "nll": "predictions: the negative log-likelihood of each reference, in nats; references: its tokens",
    "judgement": "predictions: 1 or 0 an item, as the task has judged it; references: one text an item",
    "string": "predictions: one text an item; references: a text or a list of texts an item",
}


def info(description: str | None, kind: str, options: str = "") -> evaluate.MetricInfo:
    """A metric's card. A text ("string") has one reference or a list of them."""
    if kind == "nll":
        number = datasets.Value("float64")
        features: Any = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(description, "", features, INPUTS[kind] + options)
    if kind == "judgement":
        judged: Any = {"predictions": datasets.Value("float64"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(description, "", datasets.Features(judged), INPUTS[kind] + options)
    value = datasets.Value(kind)
    references = [value, datasets.Sequence(value)] if kind == "string" else [value]
    features = [datasets.Features({"predictions": value, "references": each}) for each in references]
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=INPUTS[kind] + options,
        features=features if len(features) > 1 else features[0],
    )


_WORDS = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*|"
    r"(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])[\p{L}\p{N}]\p{M}*)+"
)


def words(text: str) -> list[str]:
    """The words of a text in lower case; of scripts that write no spaces, each character.

    Of English, what rouge_score makes of it. A text of other signs alone is these signs.
    """
    text = unicodedata.normalize("NFC", text.lower())
    return _WORDS.findall(text) or list("".join(text.split()))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The n-grams of a text in their order; of n = 0, one for each token."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1 if n else len(tokens))]


def listed_references(name: str, references: Sequence[str | list[str]]) -> list[list[str]]:
    """The references of each item as a list. ValueError for an item without one."""
    given = [[item] if isinstance(item, str) else list(item) for item in references]
    if [] in given:
        raise ValueError(f"{name}: item {given.index([])} has no reference; it needs one or more")
    return given


def rate(judgements: Sequence[float]) -> float:
    """The share of items that were judged right."""
    return float(sum(judgements) / len(judgements))


def correlation(
    name: str, measure: Callable[..., Any], predictions: list[float], references: list[float]
) -> dict[str, float]:
    """SciPy's statistic of two items or more; 0 where either side is constant, so that runs compare."""
    if len(predictions) < 2:
        raise ValueError(f"{name} needs two items or more; got {len(predictions)}")
    if not np.ptp(predictions) or not np.ptp(references):
        return {name: 0.0}
    return {name: float(measure(predictions, references).statistic)}
