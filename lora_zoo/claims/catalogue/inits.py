"""Which factor starts at zero: LoRA section 4.1, the impact of initialisation (2406.08447), and others."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lora_zoo.analysis.claims.matrices import changes
from lora_zoo.analysis.claims.reading import LR, Missing, Runs, by_seed
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Counted, OnGrid, Sampled, above, below

NEEDS = "starts"
DYNAMICS = "2406.08447"


def _tuned(runs: Runs, init: str) -> pd.Series:
    return runs.of({"init": init}, tune=[LR])


def _over(runs: Runs, one: str, other: str, floor: float = 0.0) -> Iterator[Comparison]:
    difference = (_tuned(runs, one) - _tuned(runs, other)).dropna()
    if difference.empty:
        raise Missing("the cells share no seed")
    yield Sampled(f"{one} - {other}", difference, above(floor), runs.metric)


@claim(
    "starts/one-factor-zero",
    paper="2106.09685",
    where="section 4.1; H01, H02",
    says=(
        "At the best learning rate of each, A random with B = 0 scores higher than both zero and "
        "than both random."
    ),
    needs=NEEDS,
    against=["starts/both-random-at-small-rates"],
)
def one_factor_zero(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "kaiming", "both_zero")
    yield from _over(runs, "kaiming", "both_random")


@claim(
    "starts/both-zero-stays",
    paper="source S0, S1",
    where="H01",
    says="With A = B = 0 nothing is ever learned: ||ΔW|| stays below 1e-12 in every matrix of every run.",
    needs=NEEDS,
)
def both_zero_stays(runs: Runs) -> Iterator[Comparison]:
    for rate in runs.values(LR):
        norms = runs.of({"init": "both_zero", LR: rate}, greatest_change)
        yield Counted(f"both_zero at rate {rate:g}: ||ΔW||", norms, below(1e-12), "Frobenius norm")


def greatest_change(run: pd.Series) -> float:
    """The greatest ||ΔW|| of a run's matrices."""
    return float(pd.to_numeric(changes(run)["norm"], errors="coerce").max())


@claim(
    "starts/both-random-at-small-rates",
    paper="2505.23194",
    where="H02, the counter-claim (Init[AB])",
    says="At the smallest learning rate, both random scores higher than A random with B = 0.",
    needs=NEEDS,
    against=["starts/one-factor-zero"],
)
def both_random_at_small_rates(runs: Runs) -> Iterator[Comparison]:
    rate = runs.values(LR)[0]
    difference = runs.difference({"init": "both_random", LR: rate}, {"init": "kaiming", LR: rate})
    label = f"rate {rate:g}: both_random - kaiming"
    yield Sampled(label, difference, above(0), runs.metric)


@claim(
    "starts/symmetric-as-good",
    paper="source S1",
    where="H03",
    says=(
        "At the best learning rate of each, both random less their product is less than 1 point below B = 0."
    ),
    needs=NEEDS,
)
def symmetric_as_good(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "symmetric", "kaiming", -runs.point)


@claim(
    "starts/a-random-wins",
    paper=DYNAMICS,
    where="H04",
    says="At the best learning rate of each, A random (B = 0) scores higher than B random (A = 0).",
    needs=NEEDS,
)
def a_random_wins(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "kaiming", "zero_a")


@claim(
    "starts/a-random-takes-larger-rates",
    paper=DYNAMICS,
    where="H04",
    says="A random (B = 0) has its best learning rate above that of B random (A = 0), seed by seed.",
    needs=NEEDS,
)
def a_random_takes_larger_rates(runs: Runs) -> Iterator[Comparison]:
    rates = runs.values(LR)
    best = {init: _best_rate(runs, init, rates) for init in ("kaiming", "zero_a")}
    ratio = (best["kaiming"] - best["zero_a"]).dropna()
    step = float(np.sqrt(2) * np.diff(np.log2(rates)).max())  # both rates are rounded
    yield OnGrid("log2 of the best rates' ratio", ratio, above(0), "log2 of the rate", step)


def _best_rate(runs: Runs, init: str, rates: list[float]) -> pd.Series:
    """By seed, log2 of the learning rate with the best score; ties count as their mean."""
    scores = by_seed({rate: runs.of({"init": init, LR: rate}) for rate in rates})
    logs = np.log2(np.array(scores.columns, dtype=float))
    return scores.apply(lambda row: float(logs[(row == row.max()).to_numpy()].mean()), axis=1)
