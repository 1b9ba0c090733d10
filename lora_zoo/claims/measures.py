"""Numbers of one run from its ΔW: what its record says of each matrix, and tables of `lora_zoo.deltas`."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_zoo.analysis.claims.reading import Measure, Missing
from lora_zoo.results import deltas, updates


def changes(run: pd.Series) -> pd.DataFrame:
    """One row a changed matrix of a run: name, role, layer, norm, numerical_rank, … Missing without any."""
    try:
        found = updates(run.to_frame().T)
    except (KeyError, TypeError, IndexError, ValueError) as unreadable:
        raise Missing("the runs recorded no ΔW") from unreadable
    if found.empty:
        raise Missing("the runs recorded no ΔW")
    return found


def recorded(run: pd.Series, table: str) -> pd.DataFrame:
    """A table of `lora_zoo.deltas` that was recorded with a run, a row a matrix. Missing where it was not."""
    try:
        return deltas(run.to_frame().T, table)
    except (KeyError, TypeError, AttributeError, ValueError) as unreadable:
        raise Missing(
            f"the runs recorded no table {table!r} (python -m lora_zoo.spectra RUN… --record makes it)"
        ) from unreadable


def mean_of(table: str, formula: str, roles: Sequence[str] = ()) -> Measure:
    """A run's mean over its matrices (those of `roles`) of a formula of the columns of a recorded table."""

    def measure(run: pd.Series) -> float:
        return float(_each(run, table, formula, roles).mean())

    measure.__name__ = f"{formula} in {table}"
    return measure


def total_of(table: str, formula: str, roles: Sequence[str] = ()) -> Measure:
    """The sum in place of the mean; NaN where no matrix has the quantity."""

    def measure(run: pd.Series) -> float:
        return float(_each(run, table, formula, roles).sum(min_count=1))

    measure.__name__ = f"{formula} in {table}"
    return measure


def _each(run: pd.Series, table: str, formula: str, roles: Sequence[str]) -> pd.Series:
    """The formula by matrix; NaN where it has no finite value."""
    rows = recorded(run, table)
    try:
        mine = rows[rows["role"].isin(roles)] if roles else rows
        found = pd.to_numeric(mine.eval(formula), errors="coerce")
    except (KeyError, NameError, TypeError) as lacking:
        raise Missing(f"the table {table!r} of the runs does not give {formula}") from lacking
    return found.replace([math.inf, -math.inf], math.nan)


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
