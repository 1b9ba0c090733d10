"""Spectra of ΔW by layer, variant, rank and step, and DoRA's ΔM against ΔD.

table = deltas.of_runs(runs.load("runs"), "spectra")
figures.ranks(table, ["variant"]).save("figures/ranks")

But for `spectra`, the tables are those of `lora_zoo.updates`: of one adapter, or of several with a column
`run` and the columns of `by`. Runs that agree in `by` are one series: a point is the mean over their
matrices, then over the runs, with its 95 % t interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lora_zoo.report.figures.axes import Axis, spanning
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Group, Nothing, grouped, groups, needs
from lora_zoo.report.figures.planes import Bands, Marks, Points
from lora_zoo.report.figures.rows import by_layer, line, means, stack
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
MOST = 64  # singular values
NOISE = 1e-6  # of the first singular value


def spectra(updates: pd.DataFrame, title: str = "") -> Chart:
    """Singular values of ΔW against their index, a panel a role and a line a layer, means over runs.

    `updates` is the long frame of `lora_zoo.runs.updates`, of the runs of one group.
    """
    needs(updates, "singular_values")
    table, layers, over = by_layer(updates)
    names = {layer: f"layer {layer}" if layer.isdigit() else "outside of layers" for layer in layers}
    lines = {
        role: [_values(part[part["layer"] == layer], names[layer]) for layer in layers]
        for (role,), part in grouped(table, ["role"])
    }
    return Chart(
        f"Singular values of ΔW by layer and role{f': {title}' if title else ''}",
        f"Lines: mean over {over}; values that are zero to rounding are left out.",
        _by_role(lines, Axis("index i"), Axis("σᵢ(ΔW)", log=True)),
        ordered_styles([*names.values()]),
    )


def decay(spectra: pd.DataFrame, by: Sequence[str]) -> Chart:
    """σᵢ / σ₁ of ΔW against i, means over matrices and runs; a panel a role, a line a group."""
    needs(spectra, "singular_values")
    lines = {
        role: [_decay(group) for group in groups(part, by)] for (role,), part in grouped(spectra, ["role"])
    }
    caption = (
        f"Lines: mean over matrices and runs; bands: the middle 80 % of them. The first {MOST} are shown; "
        "values that are zero to rounding are left out."
    )
    panels = _by_role(lines, Axis("index i", log=True), Axis("σᵢ / σ₁ of ΔW", log=True))
    styles = styles_of(groups(spectra, by), by)
    return Chart("How fast the singular values of ΔW fall", caption, panels, styles)


def _by_role(lines: Mapping[str, Sequence[pd.DataFrame]], x: Axis, y: Axis) -> list[Bands]:
    panels = [Bands(str(role), x, y, rows) for role, found in lines.items() if len(rows := stack(found))]
    if not panels:
        raise Nothing("no ΔW differs from zero")
    return panels


def _values(part: pd.DataFrame, name: str) -> pd.DataFrame:
    """Means by index, up to the last index where every run has a value above rounding."""
    table = pd.DataFrame([list(row)[:MOST] for row in part["singular_values"]], dtype=float)
    if table.empty:
        return table
    real = table.where(table.ge(table.max(axis=1) * NOISE, axis=0)).dropna(axis=1)
    real = real.loc[:, (real > 0).all()]
    return line(name, [int(i) + 1 for i in real.columns], real.mean().to_numpy())


def _decay(group: Group) -> pd.DataFrame:
    rows = [np.asarray(row, dtype=float)[:MOST] for row in group.runs["singular_values"]]
    table = pd.DataFrame([row / row[0] for row in rows if row.any()])
    table = table.where(table > NOISE).dropna(axis=1)
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
    bounds = line("r", given, given)
    return _measured(text, spectra, x, by, ("stable_rank", "effective_rank"), baselines=bounds)


def evolution(
    table: pd.DataFrame, by: Sequence[str], measures: Sequence[str] = ("relative_norm", "effective_rank")
) -> Chart:
    """The growth of ΔW over the checkpoints of training: a panel a measure, a line a group."""
    return _measured(("ΔW over training", f"Points: {MEANS}."), table, "step", by, measures)


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
    found, along = groups(runs, by), spanning(runs, x)
    panels = [Marks("", along, MEASURES[m], means(found, x, m), **more) for m in measures]
    return Chart(*text, panels, styles_of(found, by))


def magnitude_direction(changes: pd.DataFrame, by: Sequence[str]) -> Chart:
    """ΔM against ΔD, a point a matrix, run and checkpoint; a panel a group, with their correlation."""
    x, y = "direction_change", "magnitude_change"
    needs(changes, y, x)
    table = changes if "step" in changes else changes.assign(step="end")
    panels = []
    for group in groups(table, by):
        steps = [(step.name, step.runs) for step in groups(group.runs, ["step"])]
        rows = stack(line(name, runs[x].to_numpy(), runs[y].to_numpy()) for name, runs in steps)
        title = f"{group.name}: correlation {group.runs[y].corr(group.runs[x]):+.2f}"
        panels.append(Points(title, MEASURES[x], MEASURES[y], rows))
    paper = ", ".join(f"{name} {r:+.2f}" for name, r in PAPER.items())
    caption = (
        "Points: a matrix of a run at a checkpoint, means over its rows. DoRA's paper (2402.09353, figure 2) "
        f"found correlations of {paper} in query matrices of a pretrained VL-BART."
    )
    styles = ordered_styles([step.name for step in groups(table, ["step"])])
    return Chart("Magnitude against direction of the change", caption, panels, styles)


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
