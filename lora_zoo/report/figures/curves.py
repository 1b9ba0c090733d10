"""Curves: the loss, or what was evaluated during training, against steps or seconds."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from lora_zoo.report.figures.cells import Cell, axis_of, cells, done, needs, split
from lora_zoo.report.figures.chart import Axis, Chart, Nothing, Series
from lora_zoo.report.figures.lines import Bands
from lora_zoo.report.figures.looks import kinds

POINTS = 100  # of a curve; more than a figure's width can show


def curves(
    runs: pd.DataFrame,
    histories: pd.DataFrame,
    by: Sequence[str],
    *,
    y: str = "loss",
    against: str = "step",
) -> Chart:
    """Mean over the seeds of each cell, with a band from the lowest to the highest; a panel a task, and
    more of them where one would hold too many cells.

    `histories` is the long frame of `lora_zoo.runs.curves`. `against` "seconds" is the logged time, or
    else steps times the run's median step. Raises Nothing where no run has logged `y`.
    """
    finished = done(runs)
    needs(histories, "step", y)
    timed = with_seconds(finished, histories.dropna(subset=[y]))
    needs(timed, against)
    apart, within = split(finished, by)
    panels, seen = [], []
    for panel in cells(finished, apart):
        found = [(cell, _series(cell, timed, y, against)) for cell in cells(panel.runs, within)]
        found = [(cell, series) for cell, series in found if series.x]
        seen += [(cell.group, cell.member) for cell, _ in found]
        if found:
            panels.append(
                Bands(panel.name, axis_of(against), _y_axis(y, finished), [series for _, series in found])
            )
    if not panels:
        raise Nothing(f"no finished run has logged {y}")
    seconds = " Seconds are those of training steps alone." if against == "seconds" else ""
    return Chart(
        f"{_y_axis(y, finished).label.capitalize()} against {axis_of(against).label}",
        f"Lines: mean over seeds; bands: lowest to highest seed.{seconds}",
        panels,
        kinds(seen),
    )


def _y_axis(y: str, runs: pd.DataFrame) -> Axis:
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


def _series(cell: Cell, histories: pd.DataFrame, y: str, against: str) -> Series:
    """Seeds are averaged at the same step, also where the axis is seconds: then those are averaged, too."""
    own = histories[histories["run"].isin(cell.runs["run"])]
    grouped = own.groupby("step")
    points = pd.DataFrame(
        {
            "x": grouped[against].mean() if against != "step" else grouped["step"].first(),
            "y": grouped[y].mean(),
        }
    ).assign(low=grouped[y].min(), high=grouped[y].max())
    points = points.iloc[:: max(1, -(-len(points) // POINTS))]
    band = own["run"].nunique() > 1
    return Series(
        cell.name,
        points["x"].tolist(),
        points["y"].tolist(),
        points["low"].tolist() if band else (),
        points["high"].tolist() if band else (),
    )


__all__ = ["POINTS", "curves", "with_seconds"]
