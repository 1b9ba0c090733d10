"""Spectra of ΔW by variant, rank and step, and DoRA's ΔM against ΔD, from the tables of `lora_zoo.updates`.

table = deltas.of_runs(runs.load("runs"), "spectra")
figures.ranks(table, ["variant"]).save("figures/ranks")

A table is that of one adapter, or of several with a column `run` and the columns of `by`. Runs that agree in
`by` are one series: a point is the mean over their matrices, then over the runs, with its 95 % t interval.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_zoo.report.figures.cells import Cell, cells, grouped, needs
from lora_zoo.report.figures.chart import Axis, Chart, Nothing, Series
from lora_zoo.report.figures.comparisons import along, spanning
from lora_zoo.report.figures.lines import Bands, Marks, Points
from lora_zoo.report.figures.looks import Looks, kinds, ordered

MEANS = "mean over matrices, then over runs with its 95 % t interval (none for a single run)"
MEASURES = {
    "norm": Axis("‖ΔW‖_F"),
    "relative_norm": Axis("‖ΔW‖ / ‖W‖"),
    "stable_rank": Axis("stable rank of ΔW", log=True),
    "effective_rank": Axis("effective rank of ΔW", log=True),
    "numerical_rank": Axis("numerical rank of ΔW", log=True),
    "magnitude_change": Axis("ΔM, mean change of norms"),
    "direction_change": Axis("ΔD, mean of 1 − cos"),
}
PAPER = {"full": -0.62, "lora": 0.83, "dora": -0.31}
"""DoRA's correlations of ΔD and ΔM (2402.09353, figure 2), of VL-BART's query matrices."""


def decay(spectra: pd.DataFrame, by: Sequence[str], most: int = 64) -> Chart:
    """σᵢ / σ₁ of ΔW against i, means over matrices and runs; a panel a role, a line a cell."""
    needs(spectra, "singular_values")
    panels, found = [], cells(spectra, by)
    for (role,), part in grouped(spectra, ["role"]):
        series = [line for cell in cells(part, by) if (line := _decay(cell, most)).x]
        if series:
            panels.append(
                Bands(str(role), Axis("index i", log=True), Axis("σᵢ / σ₁ of ΔW", log=True), series)
            )
    if not panels:
        raise Nothing("no ΔW differs from zero")
    caption = (
        f"Lines: mean over matrices and runs; bands: the middle 80 % of them. The first {most} are shown; "
        "values that are zero to rounding are left out."
    )
    return Chart("How fast the singular values of ΔW fall", caption, panels, looks_of(found, by))


def _decay(cell: Cell, most: int) -> Series:
    rows = [np.asarray(row, dtype=float)[:most] for row in cell.runs["singular_values"]]
    table = pd.DataFrame([row / row[0] for row in rows if row.any()])
    if table.empty:
        return Series(cell.name, [], [])
    table = table.where(table > 1e-6).dropna(axis=1)
    low, high = (table.quantile(q).tolist() for q in (0.1, 0.9))
    return Series(cell.name, [int(i) + 1 for i in table.columns], table.mean().tolist(), low, high)


def ranks(spectra: pd.DataFrame, by: Sequence[str] = (), x: str = "rank") -> Chart:
    """Stable and effective rank of ΔW against the rank r that it was given; the grey line is r itself."""
    needs(spectra, x)
    given = sorted(spectra[x].dropna().unique())
    bound = [Series("r", given, given)]
    measures = ("stable_rank", "effective_rank")
    panels, looks = _measured(spectra, x, by, measures, bound)
    caption = (
        f"Points: {MEANS}. Stable rank: Σσ² / σ₁²; effective rank: exp of the entropy of σ / Σσ (Roy & "
        "Vetterli 2007). Both are 1 for a single direction and r for r equal ones; a residual start's ΔW has "
        "2 r at the most."
    )
    return Chart("How much of its rank ΔW uses", caption, panels, looks)


def evolution(
    table: pd.DataFrame, by: Sequence[str], measures: Sequence[str] = ("relative_norm", "effective_rank")
) -> Chart:
    """How ΔW grows over the checkpoints of training: a panel a measure, a line a cell."""
    panels, looks = _measured(table, "step", by, measures)
    return Chart("ΔW over training", f"Points: {MEANS}.", panels, looks)


def magnitude_direction(changes: pd.DataFrame, by: Sequence[str]) -> Chart:
    """ΔM against ΔD, a point a matrix, run and checkpoint; a panel a cell, with their correlation."""
    needs(changes, "magnitude_change", "direction_change")
    rows = changes if "step" in changes else changes.assign(step="end")
    steps = cells(rows, ["step"])
    x, y = MEASURES["direction_change"], MEASURES["magnitude_change"]
    panels = []
    for cell in cells(rows, by):
        r = cell.runs["magnitude_change"].corr(cell.runs["direction_change"])
        series = [
            Series(one.name, one.runs["direction_change"].tolist(), one.runs["magnitude_change"].tolist())
            for one in cells(cell.runs, ["step"])
        ]
        panels.append(Points(f"{cell.name}: correlation {r:+.2f}", x, y, series))
    said = ", ".join(f"{name} {r:+.2f}" for name, r in PAPER.items())
    caption = (
        "Points: a matrix of a run at a checkpoint, means over its rows. DoRA's paper (2402.09353, figure 2) "
        f"found correlations of {said} in query matrices of a pretrained VL-BART."
    )
    looks = ordered([step.name for step in steps])
    return Chart("Magnitude against direction of the change", caption, panels, looks)


def _measured(
    table: pd.DataFrame,
    x: str,
    by: Sequence[str],
    measures: Sequence[str],
    baselines: Sequence[Series] = (),
) -> tuple[list[Marks], Looks]:
    """A panel of marks for each measure."""
    needs(table, x, *measures)
    runs = by_run(table.dropna(subset=[x]), x, by, measures)
    found = cells(runs, by)
    panels = [
        Marks(
            "",
            spanning(runs, x),
            MEASURES[measure],
            [along(cell, x, measure) for cell in found],
            baselines=baselines,
        )
        for measure in measures
    ]
    return panels, looks_of(found, by)


def by_run(table: pd.DataFrame, x: str, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Means over the matrices of each run, for each x."""
    runs = table if "run" in table else table.assign(run="")
    keys = list(dict.fromkeys([*by, x, "run"]))
    numbers = runs[list(values)].apply(pd.to_numeric)
    return numbers.groupby([runs[key] for key in keys], dropna=False, sort=False).mean().reset_index()


def looks_of(found: Sequence[Cell], by: Sequence[str]) -> Looks:
    """From dark to bright where the cells have an order."""
    if len(by) == 1 and all(isinstance(v, int | float) for c in found for v in c.runs[by[0]].tolist()):
        return ordered([cell.name for cell in found])
    return kinds((cell.group, cell.member) for cell in found)


__all__ = ["MEANS", "by_run", "decay", "evolution", "looks_of", "magnitude_direction", "ranks"]
