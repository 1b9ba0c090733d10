"""Starts of A and B: the size of ΔW, and the claim about the best rates of two starts (2406.08447)."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lora_zoo.claims.evidence import LR, Runs, aligned
from lora_zoo.claims.hypotheses import Hypothesis, OnGrid, above
from lora_zoo.claims.measures import best_by_seed, changes, register_quantity
from lora_zoo.claims.registry import Source


@register_quantity("greatest_change", "||ΔW||", "Frobenius norm", counted=True)
def greatest_change(run: pd.Series) -> float:
    """The greatest ||ΔW|| of a run's matrices."""
    return float(pd.to_numeric(changes(run)["norm"], errors="coerce").max())


@Source("2406.08447", "starts").claim("starts/a-random-takes-larger-rates", "H04")
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
