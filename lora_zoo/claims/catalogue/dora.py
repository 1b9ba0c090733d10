"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., ICML 2024)."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from lora_zoo.claims.evidence import Missing, Runs, aligned
from lora_zoo.claims.forms import RATE, better, lies
from lora_zoo.claims.hypotheses import FISHER_Z, Hypothesis, Sampled, above, below, between
from lora_zoo.claims.measures import Quantity, changes, recorded
from lora_zoo.claims.registry import Source

PAPER = "2402.09353"
PRINTED = {"full": -0.62, "lora": 0.83, "dora": -0.31}
MARGIN = 0.2


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


CORRELATION = Quantity("correlation of ΔM and ΔD", "correlation", change_correlation, FISHER_Z)

figure_2 = Source(PAPER, "dora_decomposition")

figure_2.claim("dora/full-negative", "section 3.2, figure 2", lies("full", below(0), CORRELATION)).says(
    "In full fine-tuning, ΔM and ΔD of the query matrices correlate negatively."
)
figure_2.claim("dora/lora-positive", "section 3.2, figure 2", lies("lora", above(0), CORRELATION)).says(
    "In LoRA, ΔM and ΔD of the query matrices correlate positively."
)
figure_2.claim("dora/dora-negative", "section 4.1, figure 2", lies("dora", below(0), CORRELATION)).says(
    "In DoRA, ΔM and ΔD of the query matrices correlate negatively."
)
figure_2.claim(
    "dora/magnitudes",
    "section 3.2, figure 2",
    *(lies(v, between(r - MARGIN, min(r + MARGIN, 1.0)), CORRELATION) for v, r in PRINTED.items()),
).says(f"These correlations are -0.62 (full), 0.83 (LoRA) and -0.31 (DoRA), within {MARGIN} of each.")
Source(PAPER, "bakeoff_rank").claim(
    "dora/over-lora", "section 5.1, table 1; H36", better("dora", "lora")
).says("At one rank, each with its own best learning rate, DoRA scores higher than LoRA.")

ranks = Source(PAPER, sweep="+variant=lora,dora rank=4,8,16,32 task.lr=1e-2,2e-2,4e-2 seed=0,1,2,3,4")

ranks.claim(
    "dora/half-the-rank",
    "section 5.1, table 1; H36",
    better({"variant": "dora", "rank": 8}, {"variant": "lora", "rank": 16}, tune=RATE),
).says("DoRA at half of LoRA's rank (8 against 16), each at its own best rate, scores higher.")


@ranks.claim("dora/less-rank-sensitive", "section 5.5, table 15; H36")
def less_rank_sensitive(runs: Runs) -> Iterator[Hypothesis]:
    """Over ranks 4 to 32, each at its own best rate, LoRA's best and worst score differ more than DoRA's."""
    ranges = {}
    for variant in ("lora", "dora"):
        cells = {rank: {"variant": variant, "rank": rank} for rank in (4, 8, 16, 32)}
        scores = aligned({rank: runs.by_seed(cell, tune=RATE) for rank, cell in cells.items()})
        ranges[variant] = scores.max(axis=1) - scores.min(axis=1)
    table = aligned(ranges)
    yield Sampled("range over ranks, lora - dora", table["lora"] - table["dora"], above(0), runs.metric)
