"""Spectra of ΔW by variant, rank and step, and DoRA's ΔM against ΔD, from the tables of `lora_zoo.updates`.

table = deltas.of_runs(runs.load("runs"), "spectra")
figures.ranks(table, ["variant"]).save("figures/ranks")

A table is that of one adapter, or of several with a column `run` and the columns of `by`. Runs that agree in
`by` are one series: a point is the mean over their matrices, then over the runs, with its 95 % t interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import (
    Group,
    Nothing,
    grouped,
    groups,
    line,
    means,
    needs,
    spanning,
    stack,
)
from lora_zoo.report.figures.planes import Bands, Marks, Points
from lora_zoo.report.figures.style import Styles, ordered_styles, series_styles

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
    """σᵢ / σ₁ of ΔW against i, means over matrices and runs; a panel a role, a line a group."""
    needs(spectra, "singular_values")
    panels = []
    for (role,), part in grouped(spectra, ["role"]):
        rows = stack(_decay(group, most) for group in groups(part, by))
        if len(rows):
            axes = Axis("index i", log=True), Axis("σᵢ / σ₁ of ΔW", log=True)
            panels.append(Bands(str(role), *axes, rows))
    if not panels:
        raise Nothing("no ΔW differs from zero")
    caption = (
        f"Lines: mean over matrices and runs; bands: the middle 80 % of them. The first {most} are shown; "
        "values that are zero to rounding are left out."
    )
    styles = styles_of(groups(spectra, by), by)
    return Chart("How fast the singular values of ΔW fall", caption, panels, styles)


def _decay(group: Group, most: int) -> pd.DataFrame:
    rows = [np.asarray(row, dtype=float)[:most] for row in group.runs["singular_values"]]
    table = pd.DataFrame([row / row[0] for row in rows if row.any()])
    table = table.where(table > 1e-6).dropna(axis=1)
    low, high = (table.quantile(q).to_numpy() for q in (0.1, 0.9)) if len(table) else ((), ())
    return line(group.name, [int(i) + 1 for i in table.columns], table.mean().to_numpy(), low, high)


def ranks(spectra: pd.DataFrame, by: Sequence[str] = (), x: str = "rank") -> Chart:
    """Stable and effective rank of ΔW against the rank r that it was given; the grey line is r itself."""
    needs(spectra, x)
    given = sorted(spectra[x].dropna().unique())
    caption = (
        f"Points: {MEANS}. Stable rank: Σσ² / σ₁²; effective rank: exp of the entropy of σ / Σσ (Roy & "
        "Vetterli 2007). Both are 1 for a single direction and r for r equal ones; a residual start's ΔW has "
        "2 r at the most."
    )
    text = "How much of its rank ΔW uses", caption
    measures = ("stable_rank", "effective_rank")
    return _measured(text, spectra, x, by, measures, baselines=line("r", given, given))


def evolution(
    table: pd.DataFrame, by: Sequence[str], measures: Sequence[str] = ("relative_norm", "effective_rank")
) -> Chart:
    """How ΔW grows over the checkpoints of training: a panel a measure, a line a group."""
    return _measured(("ΔW over training", f"Points: {MEANS}."), table, "step", by, measures)


def magnitude_direction(changes: pd.DataFrame, by: Sequence[str]) -> Chart:
    """ΔM against ΔD, a point a matrix, run and checkpoint; a panel a group, with their correlation."""
    needs(changes, "magnitude_change", "direction_change")
    table = changes if "step" in changes else changes.assign(step="end")
    x, y = MEASURES["direction_change"], MEASURES["magnitude_change"]
    panels = []
    for group in groups(table, by):
        r = group.runs["magnitude_change"].corr(group.runs["direction_change"])
        rows = stack(
            line(
                step.name, step.runs["direction_change"].to_numpy(), step.runs["magnitude_change"].to_numpy()
            )
            for step in groups(group.runs, ["step"])
        )
        panels.append(Points(f"{group.name}: correlation {r:+.2f}", x, y, rows))
    paper = ", ".join(f"{name} {r:+.2f}" for name, r in PAPER.items())
    caption = (
        "Points: a matrix of a run at a checkpoint, means over its rows. DoRA's paper (2402.09353, figure 2) "
        f"found correlations of {paper} in query matrices of a pretrained VL-BART."
    )
    styles = ordered_styles([step.name for step in groups(table, ["step"])])
    return Chart("Magnitude against direction of the change", caption, panels, styles)


def _measured(
    text: tuple[str, str],
    table: pd.DataFrame,
    x: str,
    by: Sequence[str],
    measures: Sequence[str],
    **more: Any,
) -> Chart:
    """A panel of marks for each measure; `text` is title and caption."""
    needs(table, x, *measures)
    runs = by_run(table.dropna(subset=[x]), x, by, measures)
    found = groups(runs, by)
    panels = [
        Marks("", spanning(runs, x), MEASURES[m], stack(means(group, x, m) for group in found), **more)
        for m in measures
    ]
    return Chart(*text, panels, styles_of(found, by))


def by_run(table: pd.DataFrame, x: str, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Means over the matrices of each run, for each x."""
    runs = table if "run" in table else table.assign(run="")
    keys = list(dict.fromkeys([*by, x, "run"]))
    numbers = runs[list(values)].apply(pd.to_numeric)
    return numbers.groupby([runs[key] for key in keys], dropna=False, sort=False).mean().reset_index()


def styles_of(found: Sequence[Group], by: Sequence[str]) -> Styles:
    """From dark to bright where the groups have an order."""
    if len(by) == 1 and all(isinstance(v, int | float) for g in found for v in g.runs[by[0]].tolist()):
        return ordered_styles([group.name for group in found])
    return series_styles((group.head, group.member) for group in found)
