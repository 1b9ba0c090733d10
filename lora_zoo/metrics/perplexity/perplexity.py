"""Perplexity: the number of equally likely tokens among which a model is as unsure as it is."""

import math

import evaluate

from lora_zoo.metrics import METRICS
from lora_zoo.metrics.inputs import info


@METRICS.register("perplexity")
class Perplexity(evaluate.Metric):
    """{"perplexity": exp(sum of nll / sum of tokens)} of the nll (nats) and the tokens of all references."""

    higher_is_better = False
    reads = "nll"

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, "nll")

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        if not sum(references):
            raise ValueError("perplexity: the references have no tokens")
        mean = math.fsum(predictions) / math.fsum(references)
        return {"perplexity": math.exp(min(mean, 700.0))}  # of more there is no float
