"""The rate of texts that end with the right number, as GSM8K is judged, arXiv:2110.14168."""

import re
from decimal import Decimal

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info, listed_references

_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
MARK = "####"
"""Stands before GSM8K's answers."""


@METRICS.register("final_number")
class FinalNumber(evaluate.Metric):
    """{"final_number": 0..1} of texts: the last number of each, after its last #### if it has one.

    1,200 and 1200.0 are equal; a prediction without a number is wrong.
    """

    higher_is_better = True
    range = (0.0, 1.0)

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "string")

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, float]:
        right = [{final_number(r) for r in rs} for rs in listed_references("final_number", references)]
        for item, numbers in enumerate(right):
            if None in numbers:
                raise ValueError(f"final_number: the reference of item {item} holds no number")
        hits = [final_number(p) in numbers for p, numbers in zip(predictions, right, strict=True)]
        return {"final_number": sum(hits) / len(hits)}


def final_number(text: str) -> Decimal | None:
    """The last number of a text, None where it has none."""
    found = _NUMBER.findall(text.rpartition(MARK)[2]) or _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
