"""Overfitting little data with growing rank, and what dropout and weight decay do about it."""

from collections.abc import Iterator

import pandas as pd

from lora_zoo.analysis.claims.reading import Missing, Runs, number
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Sampled, above

PAPER = "source S0"
NEEDS = "overfitting"
PLAIN = {"lora_dropout": 0, "weight_decay": 0}


def _ranks(runs: Runs) -> tuple[float, float]:
    ranks = runs.values("rank")
    return ranks[0], ranks[-1]


def gap(run: pd.Series) -> float:
    """The score on the training split less that on the test split."""
    train = run.get(f"metrics.train.{run.get('metric')}")
    if train is None or pd.isna(train):
        raise Missing("the runs did not evaluate the training split")
    return number(train) - number(run.get("test"))


@claim(
    "overfitting/grows-with-rank",
    paper=PAPER,
    where="advice on overfitting",
    says=(
        "On little data without dropout or decay, the gap of training to test score is wider at "
        "the greater rank."
    ),
    needs=NEEDS,
)
def grows_with_rank(runs: Runs) -> Iterator[Comparison]:
    low, high = _ranks(runs)
    difference = runs.difference(PLAIN | {"rank": high}, PLAIN | {"rank": low}, gap)
    yield Sampled(f"gap, rank {high:g} - rank {low:g}", difference, above(0), runs.metric)


@claim(
    "overfitting/small-rank-generalises",
    paper=PAPER,
    where="advice on overfitting",
    says="On little data without dropout or decay, the smaller rank scores higher on test.",
    needs=NEEDS,
)
def small_rank_generalises(runs: Runs) -> Iterator[Comparison]:
    low, high = _ranks(runs)
    difference = runs.difference(PLAIN | {"rank": low}, PLAIN | {"rank": high})
    yield Sampled(f"rank {low:g} - rank {high:g}", difference, above(0), runs.metric)


def _helps(runs: Runs, key: str) -> Iterator[Comparison]:
    """The strongest setting of `key` against none of it, at the greater rank, on test."""
    _, high = _ranks(runs)
    strongest = runs.values(key)[-1]
    cell = PLAIN | {"rank": high}
    difference = runs.difference(cell | {key: strongest}, cell)
    yield Sampled(f"rank {high:g}: {key} {strongest:g} - 0", difference, above(0), runs.metric)


@claim(
    "overfitting/dropout-helps",
    paper=PAPER,
    where="advice on overfitting",
    says="On little data at the greater rank, dropout before A raises the test score.",
    needs=NEEDS,
)
def dropout_helps(runs: Runs) -> Iterator[Comparison]:
    yield from _helps(runs, "lora_dropout")


@claim(
    "overfitting/decay-helps",
    paper=PAPER,
    where="advice on overfitting",
    says="On little data at the greater rank, weight decay raises the test score.",
    needs=NEEDS,
)
def decay_helps(runs: Runs) -> Iterator[Comparison]:
    yield from _helps(runs, "weight_decay")


@claim(
    "overfitting/dropout-helps-large-ranks-more",
    paper=PAPER,
    where="advice on overfitting",
    says="On little data, dropout raises the test score more at the greater rank than at the smaller.",
    needs=NEEDS,
)
def dropout_helps_large_ranks_more(runs: Runs) -> Iterator[Comparison]:
    strongest = runs.values("lora_dropout")[-1]
    gains = [
        runs.difference(PLAIN | {"rank": rank, "lora_dropout": strongest}, PLAIN | {"rank": rank})
        for rank in _ranks(runs)
    ]
    more = (gains[1] - gains[0]).dropna()
    if more.empty:
        raise Missing("the cells share no seed")
    yield Sampled("gain by dropout, greater - smaller rank", more, above(0), runs.metric)
