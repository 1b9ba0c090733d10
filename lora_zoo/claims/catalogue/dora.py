"""DoRA: the correlation of figure 2, and the claim about the range of scores over ranks."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from lora_zoo.claims.evidence import Missing, Runs, aligned
from lora_zoo.claims.forms import RATE
from lora_zoo.claims.hypotheses import FISHER_Z, Hypothesis, Sampled, above
from lora_zoo.claims.measures import changes, recorded, register_quantity
from lora_zoo.claims.registry import measured


@register_quantity("change_correlation", "correlation of ΔM and ΔD", "correlation", scale=FISHER_Z)
def change_correlation(run: pd.Series) -> float:
    """Pearson's correlation of ΔM and ΔD over a run's query matrices; NaN for fewer than 3 points.

    A point is a matrix at a checkpoint, as in DoRA's figure 2; at the end of training alone, where the run's
    `evolution` was not recorded.
    """
    try:
        matrices = recorded(run, "evolution")
    except Missing:
        matrices = changes(run)
    if not {"role", "magnitude_change", "direction_change"} <= set(matrices):
        raise Missing("the runs recorded no changes of magnitude and direction")
    mine = matrices[matrices["role"] == "q"][["magnitude_change", "direction_change"]]
    points = mine.apply(pd.to_numeric, errors="coerce").dropna().astype(float)
    if len(points) < 3 or (points.std() == 0).any():
        return math.nan
    return float(np.corrcoef(points.to_numpy().T)[0, 1])


@measured(
    "dora/less-rank-sensitive",
    "2402.09353",
    "section 5.5, table 15; H36",
    sweep="+variant=lora,dora rank=4,8,16,32 task.lr=1e-2,2e-2,4e-2 seed=0,1,2,3,4",
)
def less_rank_sensitive(runs: Runs) -> Iterator[Hypothesis]:
    """Over ranks 4 to 32, each at its own best rate, LoRA's best and worst score differ more than DoRA's."""
    ranges = {}
    for variant in ("lora", "dora"):
        cells = {rank: {"variant": variant, "rank": rank} for rank in (4, 8, 16, 32)}
        scores = aligned({rank: runs.by_seed(cell, tune=RATE) for rank, cell in cells.items()})
        ranges[variant] = scores.max(axis=1) - scores.min(axis=1)
    table = aligned(ranges)
    yield Sampled("range over ranks, lora - dora", table["lora"] - table["dora"], above(0), runs.metric)
