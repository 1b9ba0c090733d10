"""Runs grouped for a figure: a cell is all seeds of one setting, named so that a person knows it."""

import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.report.figures.chart import Axis, Nothing
from lora_zoo.report.figures.looks import joined

BARE = ("variant", "init", "task", "target_modules", "model")  # values that say by themselves what they are
SHARES = {"accuracy", "exact_match", "f1"}  # metrics in 0..1
SHORT = {"rank": "r", "alpha": "α", "lora_dropout": "dropout ", "weight_decay": "decay ", "layers": "layers "}
AXES = {
    "rank": Axis("rank r"),
    "alpha": Axis("α"),
    "lr": Axis("learning rate", log=True),
    "task_lr": Axis("learning rate", log=True),
    "lora_dropout": Axis("dropout"),
    "budget": Axis("budget", "trainable parameters", log=True),
    "trainable": Axis("trainable parameters", log=True),
    "saved_bytes": Axis("activations kept for backward", "bytes", log=True),
    "adapter_bytes": Axis("adapter on disk", "bytes", log=True),
    "step_seconds": Axis("time of a step, median", "s"),
    "train_seconds": Axis("training time", "s"),
    "total_seconds": Axis("time of the whole run", "s"),
    "peak_memory": Axis("peak memory", "bytes"),
    "retention_after": Axis("loss on the other text after training", "nats a token"),
    "seconds": Axis("training time", "s"),
    "step": Axis("optimiser step"),
    "loss": Axis("training loss", log=True),
    "grad_norm": Axis("gradient norm", log=True),
    "target_modules": Axis("target matrices"),
}


class Cell(NamedTuple):
    """`group` is the value of the first axis, `member` the others'; their looks share a colour, a marker."""

    group: str
    member: str
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        return joined(self.group, self.member)


def done(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs. Nothing where there is none."""
    finished = runs[runs["state"] == "done"] if "state" in runs else runs
    if finished.empty:
        raise Nothing("no run is done")
    return finished


def cells(runs: pd.DataFrame, by: Sequence[str]) -> list[Cell]:
    """One cell for each combination of values of `by` that was run, in the order of the values."""
    if not by:
        return [Cell("all runs", "", runs)]
    found = []
    for key, group in grouped(runs, by):
        words = [word(axis, value) for axis, value in zip(by, key, strict=True)]
        found.append(Cell(words[0], joined(*words[1:]), group))
    return found


def grouped(runs: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The values of `by` and their runs; numbers by size, what was not set last."""
    columns = list(by)
    groups = {tuple(key): group for key, group in runs.groupby(columns, dropna=False, sort=False)}
    yield from sorted(groups.items(), key=lambda item: [in_order(value) for value in item[0]])


def in_order(value: Any) -> tuple[int, float, str]:
    """A key by which numbers come first, by size, then words, then what is missing."""
    if missing(value):
        return (2, 0.0, "")
    if isinstance(value, Real):
        return (0, float(value), "")
    return (1, float(str(value).count(",")), str(value))


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA


def word(axis: str, value: Any) -> str:
    """A value as part of a name: r8, lora, q,v, learning rate 0.01; "" for what a variant does not have."""
    if missing(value):
        return ""
    said = f"{value:g}" if isinstance(value, float) else str(value)
    if axis in BARE:
        return said
    return SHORT.get(axis, f"{axis.rpartition('.')[2]} ") + said


def axis_of(column: str) -> Axis:
    """Label and unit of a column of the frame."""
    return AXES.get(column, Axis(column.rpartition(".")[2].replace("_", " ")))


def value_axis(runs: pd.DataFrame, value: str) -> Axis:
    """What a column of outcomes measures: the test split's exact match, say."""
    if value not in ("test", "validation", "zero_shot_test", "zero_shot_validation"):
        return axis_of(value)
    metrics = sorted({str(name) for name in runs["metric"].dropna()}) or ["metric"]
    label = f"{' or '.join(metrics)}, {value}".replace("_", " ")
    return Axis(label, "share" if set(metrics) <= SHARES else "")


MOST = 10  # series that a panel can hold and a reader tell apart


def split(runs: pd.DataFrame, by: Sequence[str]) -> tuple[list[str], list[str]]:
    """Axes of panels and axes of the series within: where those are too many, axes become panels.

    The task always does; then the later axes, the one of fewest values first.
    """
    panels, series = ["task"], [axis for axis in by if axis != "task"]
    while len(series) > 1 and len(runs[series].drop_duplicates()) > MOST:
        move = min(series[1:], key=lambda axis: runs[axis].nunique(dropna=False))
        series.remove(move)
        panels.append(move)
    return panels, series


def by_task(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """One panel a task; its title is the task's name."""
    return [(str(key[0]), group) for key, group in grouped(runs, ["task"])]


def needs(frame: pd.DataFrame, *columns: str) -> None:
    """Nothing, by name, where a column is absent or empty."""
    absent = [column for column in columns if column not in frame or frame[column].isna().all()]
    if absent:
        raise Nothing(f"the results have no {', '.join(absent)}")


__all__ = [
    "Cell",
    "axis_of",
    "by_task",
    "cells",
    "done",
    "grouped",
    "in_order",
    "missing",
    "needs",
    "split",
    "value_axis",
    "word",
]
