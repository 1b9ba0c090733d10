"""The gap of training to test score, which claims about overfitting look at."""

import pandas as pd

from lora_zoo.claims.evidence import Missing
from lora_zoo.claims.measures import number, register_quantity


@register_quantity("gap", "gap", "")
def gap(run: pd.Series) -> float:
    """The score on the training split less that on the test split."""
    train = run.get(f"metrics.train.{run.get('metric')}")
    if train is None or pd.isna(train):
        raise Missing("the runs did not evaluate the training split")
    return number(train) - number(run.get("test"))
