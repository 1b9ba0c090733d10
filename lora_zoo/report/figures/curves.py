"""Curves: the loss, or what was evaluated during training, against steps or seconds."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Group, Nothing, axis_of, done, groups, line, needs, split, stack
from lora_zoo.report.figures.planes import Bands
from lora_zoo.report.figures.style import series_styles

POINTS = 100  # of a curve; more than a figure's width can show


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
    panels, seen = [], []
    for panel in groups(finished, apart):
        found = [(group, _curve(group, timed, y, against)) for group in groups(panel.runs, within)]
        found = [(group, rows) for group, rows in found if len(rows)]
        seen += [(group.head, group.member) for group, _ in found]
        if found:
            rows = stack(rows for _, rows in found)
            panels.append(Bands(panel.name, axis_of(against), _axis(y, finished), rows))
    if not panels:
        raise Nothing(f"no finished run has logged {y}")
    seconds = " Seconds are those of training steps alone." if against == "seconds" else ""
    return Chart(
        f"{_axis(y, finished).label.capitalize()} against {axis_of(against).label}",
        f"Lines: mean over seeds; bands: lowest to highest seed.{seconds}",
        panels,
        series_styles(seen),
    )


def _axis(y: str, runs: pd.DataFrame) -> Axis:
    """The loss is a cross-entropy, but for tasks of regression."""
    kinds_of_task = set(runs["config.task.type"]) if "config.task.type" in runs else set()
    if y == "loss" and kinds_of_task and "regression" not in kinds_of_task:
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
    points = own.groupby("step").agg(x=(x, "mean"), y=(y, "mean"), low=(y, "min"), high=(y, "max"))
    points = points.iloc[:: max(1, -(-len(points) // POINTS))].reset_index(drop=True)
    if own["run"].nunique() < 2:
        points = points.assign(low=float("nan"), high=float("nan"))
    return line(group.name, **{name: points[name] for name in points})
