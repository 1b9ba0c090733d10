"""The factor that starts at zero: LoRA section 4.1, the impact of initialisation (2406.08447), and others."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lora_zoo.claims.evidence import LR, Runs, aligned
from lora_zoo.claims.forms import RATE, as_good, better, each, lies
from lora_zoo.claims.hypotheses import Hypothesis, OnGrid, above, below
from lora_zoo.claims.measures import CountedQuantity, best_by_seed, changes
from lora_zoo.claims.registry import Source


def init(name: str, **axes: Any) -> dict[str, Any]:
    return {"init": name, **axes}


def greatest_change(run: pd.Series) -> float:
    """The greatest ||ΔW|| of a run's matrices."""
    return float(pd.to_numeric(changes(run)["norm"], errors="coerce").max())


NORM = CountedQuantity("||ΔW||", "Frobenius norm", greatest_change)

Source("2106.09685", "starts").claim(
    "starts/one-factor-zero",
    "section 4.1; H01, H02",
    better(init("kaiming"), init("both_zero"), init("both_random"), tune=RATE),
    against=["starts/both-random-at-small-rates"],
).says("At the best learning rate of each, A random with B = 0 scores higher than both zero and both random.")
Source("source S0, S1", "starts").claim(
    "starts/both-zero-stays",
    "H01",
    each(LR, lambda rate: lies(init("both_zero", task_lr=rate), below(1e-12), NORM)),
).says("With A = B = 0 nothing is ever learned: ||ΔW|| stays below 1e-12 in every matrix of every run.")
Source("2505.23194", "starts").claim(
    "starts/both-random-at-small-rates",
    "H02, the counter-claim (Init[AB])",
    better(init("both_random", task_lr=min), init("kaiming", task_lr=min)),
    against=["starts/one-factor-zero"],
).says("At the smallest learning rate, both random scores higher than A random with B = 0.")
Source("source S1", "starts").claim(
    "starts/symmetric-as-good", "H03", as_good(init("symmetric"), init("kaiming"), tune=RATE)
).says("At the best learning rate of each, both random less their product is less than 1 point below B = 0.")

dynamics = Source("2406.08447", "starts")

dynamics.claim("starts/a-random-wins", "H04", better(init("kaiming"), init("zero_a"), tune=RATE)).says(
    "At the best learning rate of each, A random (B = 0) scores higher than B random (A = 0)."
)


@dynamics.claim("starts/a-random-takes-larger-rates", "H04")
def a_random_takes_larger_rates(runs: Runs) -> Iterator[Hypothesis]:
    """A random (B = 0) has its best learning rate above that of B random (A = 0), seed by seed."""
    rates = runs.levels(LR)
    of_A, of_B = (
        best_by_seed({rate: runs.by_seed(init(name, task_lr=rate)) for rate in rates})
        for name in ("kaiming", "zero_a")
    )
    best = aligned({"A": of_A, "B": of_B})
    step = float(np.sqrt(2) * np.diff(np.log2(rates)).max())  # both rates are rounded
    yield OnGrid("log2 of the best rates' ratio", best["A"] - best["B"], above(0), "log2 of the rate", step)
