"""Outcomes of groups: over training, against a setting such as the rank, against what they cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lora_zoo.analysis.protocol import better, interval_of
from lora_zoo.report.figures.axes import Axis, axis_of, spanning, value_axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import MOST, Group, Nothing, done, groups, needs, split
from lora_zoo.report.figures.planes import Bands, Front, Marks
from lora_zoo.report.figures.rows import line, means, stack
from lora_zoo.report.figures.style import series_styles

POINTS = 100  # of a curve; more than a figure's width can show
LEVELS = 64
INTERVAL = "mean over seeds with its 95 % interval (none for a single seed)"


def curves(
    runs: pd.DataFrame,
    histories: pd.DataFrame,
    by: Sequence[str],
    *,
    y: str = "loss",
    against: str = "step",
) -> Chart:
    """Mean over the seeds of each group, with a band from the lowest to the highest; a panel a task, and
    more of them where one would hold too many groups.

    `histories` is the long frame of `lora_zoo.runs.histories`. `against` "seconds" is the logged time, or
    else steps times the run's median step. Raises Nothing where no run has logged `y`.
    """
    finished = done(runs)
    needs(histories, "step", y)
    timed = with_seconds(finished, histories.dropna(subset=[y]))
    needs(timed, against)
    apart, within = split(finished, by)
    across, up, panels, seen = axis_of(against), _logged_axis(y, finished), [], []
    for panel in groups(finished, apart):
        found = [(group, _curve(group, timed, y, against)) for group in groups(panel.runs, within)]
        seen += [(group.head, group.member) for group, rows in found if len(rows)]
        if len(rows := stack(rows for _, rows in found)):
            panels.append(Bands(panel.name, across, up, rows))
    if not panels:
        raise Nothing(f"no finished run has logged {y}")
    seconds = " Seconds are those of training steps alone." if against == "seconds" else ""
    caption = f"Lines: mean over seeds; bands: lowest to highest seed.{seconds}"
    return Chart(f"{up.label.capitalize()} against {across.label}", caption, panels, series_styles(seen))


def _logged_axis(y: str, runs: pd.DataFrame) -> Axis:
    """The loss is a cross-entropy, but for tasks of regression."""
    types = set(runs["config.task.type"]) if "config.task.type" in runs else set()
    if y == "loss" and types and "regression" not in types:
        return replace(axis_of(y), unit="nats")
    if not y.startswith("eval_"):
        return axis_of(y)
    return replace(axis_of(y.removeprefix("eval_")), label=y.removeprefix("eval_").replace("_", " "))


def with_seconds(runs: pd.DataFrame, histories: pd.DataFrame) -> pd.DataFrame:
    """`histories` with a column `seconds`, filled in from each run's median step where it was not logged."""
    step = histories["run"].map(runs.drop_duplicates("run").set_index("run")["step_seconds"])
    estimate = histories["step"] * pd.to_numeric(step)
    logged = histories["seconds"] if "seconds" in histories else pd.Series(float("nan"), histories.index)
    return histories.assign(seconds=pd.to_numeric(logged).fillna(estimate))


def _curve(group: Group, histories: pd.DataFrame, y: str, against: str) -> pd.DataFrame:
    """Seeds are averaged at the same step, also where the axis is seconds: then those are averaged, too."""
    own = histories[histories["run"].isin(group.runs["run"])].assign(at=lambda table: table["step"])
    x = "at" if against == "step" else against
    at, of = own.groupby("step")[x], own.groupby("step")[y]  # one by one: `agg` takes four times as long
    points = pd.DataFrame({"x": at.mean(), "y": of.mean(), "low": of.min(), "high": of.max()})
    points = points.iloc[:: max(1, -(-len(points) // POINTS))].reset_index(drop=True)
    if own["run"].nunique() < 2:
        points = points.assign(low=float("nan"), high=float("nan"))
    return line(group.name, **{name: points[name] for name in points})


def against(runs: pd.DataFrame, x: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """`value` against a numeric setting `x`, mean and 95 % interval over seeds; panels as in `curves`."""
    finished = done(runs, x, value)
    apart, within = split(finished, [axis for axis in by if axis != x])
    across, panels, seen = spanning(finished, x), [], []
    for panel in groups(finished, apart):
        found = groups(panel.runs, within)
        seen += [(group.head, group.member) for group in found]
        panels.append(Marks(panel.name, across, value_axis(panel.runs, value), means(found, x, value)))
    title = f"{value_axis(finished, value).label.capitalize()} against {across.label}"
    return Chart(title, f"Points: {INTERVAL}.", panels, series_styles(seen))


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
    mean = interval_of(group.runs, value)
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
    panel = Bands(
        "", value_axis(finished, value), Axis("runs above it", "share", range=(0, 1)), rows, stairs=True
    )
    wanted = "better" if _direction(finished, value) == "higher" else "worse"
    counts = sorted({len(group.runs) for group in found})
    n = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return Chart(
        "Share of runs that score above a threshold",
        f"Performance profiles over seeds and {', '.join(axis_of(s).label for s in strata)} (Agarwal et al. "
        f"2021) of n = {n} runs each. A curve above another is {wanted} at every threshold; intervals, "
        "which would hide the curves, are those of the means above.",
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
    scores = [part[value].to_numpy(dtype=float) for _, part in group.runs.groupby(strata, dropna=False)]
    if len({len(own) for own in scores}) > 1:
        raise Nothing(f"{group.name}: its settings have unequal numbers of seeds")
    share = [np.mean([own > level for own in scores]) for level in levels]
    return line(group.name, levels, share)
