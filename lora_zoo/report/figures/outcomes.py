"""Outcomes of groups: against a setting such as the rank, on a grid of two, against what they cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_zoo.analysis.aggregates import profile
from lora_zoo.analysis.protocol import better
from lora_zoo.analysis.statistics import interval
from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import (
    MOST,
    Group,
    Nothing,
    axis_of,
    done,
    groups,
    in_order,
    line,
    means,
    spanning,
    split,
    stack,
    value_axis,
)
from lora_zoo.report.figures.heat import Heat
from lora_zoo.report.figures.planes import Bands, Front, Marks
from lora_zoo.report.figures.style import series_styles

LEVELS = 16  # each is a bootstrap
INTERVAL = "mean over seeds with its 95 % t interval (none for a single seed)"


def against(runs: pd.DataFrame, x: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """`value` against a numeric setting `x`, mean and 95 % interval over seeds; panels as in `curves`."""
    finished = done(runs, x, value)
    apart, within = split(finished, [axis for axis in by if axis != x])
    panels, seen = [], []
    for panel in groups(finished, apart):
        found = groups(panel.runs, within)
        seen += [(group.head, group.member) for group in found]
        rows = stack(means(group, x, value) for group in found)
        panels.append(Marks(panel.name, spanning(finished, x), value_axis(panel.runs, value), rows))
    title = f"{value_axis(finished, value).label.capitalize()} against {axis_of(x).label}"
    return Chart(title, f"Points: {INTERVAL}.", panels, series_styles(seen))


def grid(runs: pd.DataFrame, rows: str, columns: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """Means of `value` on the grid of two settings, one panel for each task and other setting in `by`."""
    finished = done(runs, value)
    done(finished, rows, columns)
    shown = finished.groupby([*{rows, columns, "task", *by}], dropna=False)[value].mean()
    colour = value_axis(finished, value)
    others = ["task", *(axis for axis in by if axis not in (rows, columns, "task"))]
    ends = float(shown.min()), float(shown.max())
    axes = axis_of(columns), axis_of(rows)
    panels = [
        Heat(panel.name, *axes, _cells(panel.runs, rows, columns, value), colour, *ends)
        for panel in groups(finished, others)
    ]
    label = f"{colour.label.capitalize()} by {axis_of(rows).label} and {axis_of(columns).label}"
    return Chart(
        label, "Cells: mean over seeds; empty where nothing was run. One colour scale for all panels.", panels
    )


def _cells(runs: pd.DataFrame, rows: str, columns: str, value: str) -> pd.DataFrame:
    down, along = (sorted(runs[axis].dropna().unique(), key=in_order) for axis in (rows, columns))
    parts = {key: part[value].astype(float) for key, part in runs.groupby([rows, columns])}
    found = [
        {"row": _plain(r), "column": _plain(c), "value": part.mean(), "note": f"n = {len(part)}"}
        for r in down
        for c in along
        for part in [parts.get((r, c), pd.Series(dtype=float))]
    ]
    return pd.DataFrame(found)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def pareto(runs: pd.DataFrame, cost: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """`value` against a cost, a point a group, and the front of those that none beats; a panel a task.

    Groups that agree in the first of `by` are one series.
    """
    finished = done(runs, cost, value)
    by = [axis for axis in by if axis != "task"]
    panels: list[Front] = []
    for task in groups(finished, ["task"]):
        rows = stack(_point(group, cost, value) for group in groups(task.runs, by))
        sign = 1 if _direction(task.runs, value) == "higher" else -1
        x, y = spanning(task.runs, cost), value_axis(task.runs, value)
        panels.append(Front(task.name, x, y, rows, sign))
    y = value_axis(finished, value)
    caption = (
        f"Points: {INTERVAL}; the cost is the seeds' median. Line: Pareto front of the means; "
        "with few seeds, points whose intervals overlap may change places on it."
    )
    styles = series_styles((name, "") for panel in panels for name in panel.names)
    return Chart(f"{y.label.capitalize()} against {axis_of(cost).label}", caption, panels, styles)


def _direction(runs: pd.DataFrame, value: str) -> str:
    try:
        return better(runs, value)
    except ValueError as undeclared:
        raise Nothing(str(undeclared)) from undeclared


def _point(group: Group, cost: str, value: str) -> pd.DataFrame:
    mean = interval(group.runs[value].astype(float))
    at = float(pd.to_numeric(group.runs[cost]).median())
    return line(group.head, [at], mean.estimate, mean.low, mean.high, note=group.member)


def profiles(runs: pd.DataFrame, axis: str, over: Sequence[str], *, value: str = "test") -> Chart:
    """Performance profiles: for every score τ the share of the runs above it, by the values of `axis`.

    Runs of each task and each setting of the axes in `over` are a stratum, and all strata count alike.
    """
    finished = done(runs, value)
    found = groups(finished, [axis])
    if not 1 < len(found) <= MOST:
        raise Nothing(f"a profile compares 2 to {MOST} values, and there are {len(found)}")
    strata = ["task", *(other for other in over if other not in (axis, "task"))]
    levels = _levels(finished[value].to_numpy(dtype=float))
    rows = stack(_profile(group, strata, value, levels) for group in found)
    panel = Bands("", value_axis(finished, value), Axis("runs above it", "share"), rows, stairs=True)
    wanted = "better" if _direction(finished, value) == "higher" else "worse"
    return Chart(
        "Share of runs that score above a threshold",
        f"Performance profiles over seeds and {', '.join(axis_of(s).label for s in strata)} (Agarwal et al. "
        "2021). Bands: 95 % stratified bootstrap, too narrow for few seeds. A curve above another is "
        f"{wanted} at every threshold.",
        [panel],
        series_styles((group.head, group.member) for group in found),
    )


def _levels(scores: np.ndarray) -> np.ndarray:
    """All scores, thinned to at most `LEVELS`, and one below them, where every run is above."""
    distinct = np.unique(scores)
    margin = 0.02 * (np.ptp(distinct) or 1.0)
    return np.concatenate([[distinct[0] - margin], distinct[:: -(-len(distinct) // LEVELS)]])


def _profile(group: Group, strata: list[str], value: str, levels: np.ndarray) -> pd.DataFrame:
    """A staircase: the share falls at each score that was reached."""
    stratum = group.runs.groupby(strata, dropna=False).ngroup()
    seed = stratum.groupby(stratum).cumcount()
    scores = pd.DataFrame({"stratum": stratum, "seed": seed, "score": group.runs[value]})
    try:
        table = profile(scores.pivot(index="seed", columns="stratum", values="score"), levels)
    except ValueError as uneven:
        raise Nothing(f"{group.name}: its settings have unequal numbers of seeds") from uneven
    return line(group.name, *(table[name].to_numpy() for name in ("threshold", "share", "low", "high")))
