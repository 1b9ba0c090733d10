"""Starts of A and B: the claim about the best rates of two of them (2406.08447)."""

from collections.abc import Iterator

import numpy as np

from lora_zoo.claims.evidence import LR, Runs, aligned
from lora_zoo.claims.hypotheses import Hypothesis, OnGrid, above
from lora_zoo.claims.measures import best_by_seed
from lora_zoo.claims.registry import measured


@measured("starts/a-random-takes-larger-rates", "2406.08447", "H04", experiment="starts")
def a_random_takes_larger_rates(runs: Runs) -> Iterator[Hypothesis]:
    """A random (B = 0) has its best learning rate above that of B random (A = 0), seed by seed."""
    rates = runs.levels(LR)
    of_A, of_B = (
        best_by_seed({rate: runs.by_seed({"init": name, LR: rate}) for rate in rates})
        for name in ("kaiming", "zero_a")
    )
    best = aligned({"A": of_A, "B": of_B})
    step = float(np.sqrt(2) * np.diff(np.log2(rates)).max())  # both rates are rounded
    yield OnGrid("log2 of the best rates' ratio", best["A"] - best["B"], above(0), "log2 of the rate", step)
