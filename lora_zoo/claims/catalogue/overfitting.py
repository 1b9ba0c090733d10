"""Overfitting little data with growing rank, and what dropout and weight decay do about it."""

from typing import Any

import pandas as pd

from lora_zoo.claims.evidence import Missing
from lora_zoo.claims.forms import better, more
from lora_zoo.claims.measures import Quantity, number
from lora_zoo.claims.registry import Source

ADVICE = "advice on overfitting"

little_data = Source("source S0", "overfitting")


def gap(run: pd.Series) -> float:
    """The score on the training split less that on the test split."""
    train = run.get(f"metrics.train.{run.get('metric')}")
    if train is None or pd.isna(train):
        raise Missing("the runs did not evaluate the training split")
    return number(train) - number(run.get("test"))


GAP = Quantity("gap", "", gap)


def trained(rank: Any, **regularisation: Any) -> dict[str, Any]:
    """A cell without dropout and decay but for `regularisation`; `max` is the strongest that was run."""
    return {"lora_dropout": 0, "weight_decay": 0, **regularisation, "rank": rank}


little_data.claim("overfitting/grows-with-rank", ADVICE, better(trained(max), trained(min), of=GAP)).says(
    "On little data without dropout or decay, the gap of training to test score is wider at the greater rank."
)
little_data.claim("overfitting/small-rank-generalises", ADVICE, better(trained(min), trained(max))).says(
    "On little data without dropout or decay, the smaller rank scores higher on test."
)
little_data.claim(
    "overfitting/dropout-helps", ADVICE, better(trained(max, lora_dropout=max), trained(max))
).says("On little data at the greater rank, dropout before A raises the test score.")
little_data.claim(
    "overfitting/decay-helps", ADVICE, better(trained(max, weight_decay=max), trained(max))
).says("On little data at the greater rank, weight decay raises the test score.")
little_data.claim(
    "overfitting/dropout-helps-large-ranks-more",
    ADVICE,
    more((trained(max, lora_dropout=max), trained(max)), (trained(min, lora_dropout=max), trained(min))),
).says("On little data, dropout raises the test score more at the greater rank than at the smaller.")
