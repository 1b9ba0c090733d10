"""Outcomes of cells: against a setting such as the rank, on a grid of two, against what they cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_zoo.analysis.aggregates import profile
from lora_zoo.analysis.protocol import better
from lora_zoo.analysis.statistics import interval
from lora_zoo.report.figures.cells import (
    MOST,
    Cell,
    axis_of,
    by_task,
    cells,
    done,
    grouped,
    in_order,
    needs,
    split,
    value_axis,
)
from lora_zoo.report.figures.chart import Axis, Chart, Nothing, Series
from lora_zoo.report.figures.heat import Heat
from lora_zoo.report.figures.lines import Bands, Front, Marks
from lora_zoo.report.figures.looks import kinds

LEVELS = 16  # each is a bootstrap
INTERVAL = "mean over seeds with its 95 % t interval (none for a single seed)"


def against(runs: pd.DataFrame, x: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """`value` against a numeric setting `x`, mean and 95 % interval over seeds; panels as in `curves`."""
    finished = done(runs)
    needs(finished, x, value)
    finished = finished.dropna(subset=[x, value])
    apart, within = split(finished, [axis for axis in by if axis != x])
    panels, seen = [], []
    for panel in cells(finished, apart):
        found = cells(panel.runs, within)
        seen += [(cell.group, cell.member) for cell in found]
        series = [along(cell, x, value) for cell in found]
        panels.append(Marks(panel.name, spanning(finished, x), value_axis(panel.runs, value), series))
    y = value_axis(finished, value)
    return Chart(
        f"{y.label.capitalize()} against {axis_of(x).label}", f"Points: {INTERVAL}.", panels, kinds(seen)
    )


def spanning(runs: pd.DataFrame, x: str) -> Axis:
    """The axis of x, logarithmic where the values span more than a decade, and none is zero."""
    values = pd.to_numeric(runs[x])
    wide = values.min() > 0 and values.max() / values.min() >= 8
    axis = axis_of(x)
    return Axis(axis.label, axis.unit, log=bool(wide))


def along(cell: Cell, x: str, value: str) -> Series:
    """Means of `value` over a cell's rows at each x, with their 95 % intervals."""
    places = [(float(key[0]), interval(group[value].astype(float))) for key, group in grouped(cell.runs, [x])]
    return Series(
        cell.name,
        [at for at, _ in places],
        [i.estimate for _, i in places],
        [i.low for _, i in places],
        [i.high for _, i in places],
        [f"{cell.name}, n = {i.n}" for _, i in places],
    )


def grid(runs: pd.DataFrame, rows: str, columns: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """Means of `value` on the grid of two settings, one panel for each task and other setting in `by`."""
    finished = done(runs)
    needs(finished, rows, columns, value)
    finished = finished.dropna(subset=[value])
    means = finished.groupby([*{rows, columns, "task", *by}], dropna=False)[value].mean()
    low, high = float(means.min()), float(means.max())
    colour = value_axis(finished, value)
    panels = []
    for panel in cells(finished, ["task", *(axis for axis in by if axis not in (rows, columns, "task"))]):
        panels.append(_heat(panel, (rows, columns), value, colour, (low, high)))
    label = f"{colour.label.capitalize()} by {axis_of(rows).label} and {axis_of(columns).label}"
    return Chart(
        label, "Cells: mean over seeds; empty where nothing was run. One colour scale for all panels.", panels
    )


def _heat(
    panel: Cell, settings: tuple[str, str], value: str, colour: Axis, ends: tuple[float, float]
) -> Heat:
    rows, columns = settings
    down = sorted(panel.runs[rows].dropna().unique(), key=in_order)
    along = sorted(panel.runs[columns].dropna().unique(), key=in_order)
    at = {key: interval(group[value].astype(float)) for key, group in panel.runs.groupby([rows, columns])}
    return Heat(
        panel.name,
        axis_of(columns),
        axis_of(rows),
        [_plain(v) for v in along],
        [_plain(v) for v in down],
        [[at[r, c].estimate if (r, c) in at else np.nan for c in along] for r in down],
        colour,
        *ends,
        notes=[[f"n = {at[r, c].n}" if (r, c) in at else "" for c in along] for r in down],
    )


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def pareto(runs: pd.DataFrame, cost: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """`value` against a cost, a point a cell, and the front of those that none beats; a panel a task.

    Cells that agree in the first of `by` are one series.
    """
    finished = done(runs)
    needs(finished, cost, value)
    finished = finished.dropna(subset=[cost, value])
    by = [axis for axis in by if axis != "task"]
    panels, seen = [], []
    for task, part in by_task(finished):
        found = cells(part, by)
        groups = list(dict.fromkeys(cell.group for cell in found))
        seen += [(group, "") for group in groups]
        series = [_points(group, found, cost, value) for group in groups]
        sign = 1 if better(part, value) == "higher" else -1
        panels.append(Front(task, spanning(part, cost), value_axis(part, value), series, sign))
    y = value_axis(finished, value)
    caption = (
        f"Points: {INTERVAL}; the cost is the seeds' median. Line: Pareto front of the means; "
        "with few seeds, points whose intervals overlap may change places on it."
    )
    return Chart(f"{y.label.capitalize()} against {axis_of(cost).label}", caption, panels, kinds(seen))


def _points(group: str, found: Sequence[Cell], cost: str, value: str) -> Series:
    own = [cell for cell in found if cell.group == group]
    means = [interval(cell.runs[value].astype(float)) for cell in own]
    return Series(
        group,
        [float(pd.to_numeric(cell.runs[cost]).median()) for cell in own],
        [mean.estimate for mean in means],
        [mean.low for mean in means],
        [mean.high for mean in means],
        [cell.member for cell in own],
    )


def profiles(runs: pd.DataFrame, axis: str, over: Sequence[str], *, value: str = "test") -> Chart:
    """Performance profiles: for every score τ the share of the runs above it, by the values of `axis`.

    Runs of each task and each setting of the axes in `over` are a stratum, and all strata count alike.
    """
    finished = done(runs)
    needs(finished, value)
    finished = finished.dropna(subset=[value])
    found = cells(finished, [axis])
    if not 1 < len(found) <= MOST:
        raise Nothing(f"a profile compares 2 to {MOST} values, and there are {len(found)}")
    strata = ["task", *(other for other in over if other not in (axis, "task"))]
    levels = _levels(finished[value].to_numpy(dtype=float))
    series = [_profile(cell, strata, value, levels) for cell in found]
    panel = Bands("", value_axis(finished, value), Axis("runs above it", "share"), series)
    wanted = "better" if better(finished, value) == "higher" else "worse"
    return Chart(
        "Share of runs that score above a threshold",
        f"Performance profiles over seeds and {', '.join(axis_of(s).label for s in strata)} (Agarwal et al. "
        "2021). Bands: 95 % stratified bootstrap, too narrow for few seeds. A curve above another is "
        f"{wanted} at every threshold.",
        [panel],
        kinds((cell.group, cell.member) for cell in found),
    )


def _levels(scores: np.ndarray) -> np.ndarray:
    """All scores, thinned to at most `LEVELS`, and one below them, where every run is above."""
    distinct = np.unique(scores)
    margin = 0.02 * (np.ptp(distinct) or 1.0)
    return np.concatenate([[distinct[0] - margin], distinct[:: -(-len(distinct) // LEVELS)]])


def _profile(cell: Cell, strata: list[str], value: str, levels: np.ndarray) -> Series:
    """A staircase: the share falls at each score that was reached."""
    stratum = cell.runs.groupby(strata, dropna=False).ngroup()
    seed = stratum.groupby(stratum).cumcount()
    scores = pd.DataFrame({"stratum": stratum, "seed": seed, "score": cell.runs[value]})
    try:
        table = profile(scores.pivot(index="seed", columns="stratum", values="score"), levels)
    except ValueError as uneven:
        raise Nothing(f"{cell.name}: its settings have unequal numbers of seeds") from uneven
    at = np.repeat(table["threshold"].to_numpy(), 2)[1:].tolist()
    share, low, high = (np.repeat(table[c].to_numpy(), 2)[:-1].tolist() for c in ("share", "low", "high"))
    return Series(cell.name, at, share, low, high)


__all__ = ["against", "along", "grid", "pareto", "profiles", "spanning"]
