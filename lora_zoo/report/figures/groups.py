"""Runs grouped for a figure: a group is all seeds of one setting, named so that a person knows it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lora_zoo.analysis.statistics import interval
from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.panels import COLUMNS
from lora_zoo.report.figures.style import joined
from lora_zoo.runs import metric_facts

BARE = ("variant", "init", "task", "target_modules", "model")  # values that say by themselves what they are
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


class Nothing(ValueError):
    """The results do not hold what the figure shows; the message says what is missing."""


class Group(NamedTuple):
    """Runs of one setting. `head` is the value of its first axis, `member` the others'."""

    head: str
    member: str
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        return joined(self.head, self.member)


def done(runs: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The finished runs that have a value in each column. Nothing where there is none."""
    finished = runs[runs["state"] == "done"] if "state" in runs else runs
    if finished.empty:
        raise Nothing("no run is done")
    needs(finished, *columns)
    return finished.dropna(subset=[*columns])


def groups(runs: pd.DataFrame, by: Sequence[str]) -> list[Group]:
    """One group for each combination of values of `by` that was run, in the order of the values."""
    if not by:
        return [Group("all runs", "", runs)]
    found = []
    for key, part in grouped(runs, by):
        words = [word(axis, value) for axis, value in zip(by, key, strict=True)]
        found.append(Group(words[0], joined(*words[1:]), part))
    return found


def grouped(runs: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The values of `by` and their runs; numbers by size, what was not set last."""
    parts = {tuple(key): part for key, part in runs.groupby(list(by), dropna=False, sort=False)}
    yield from sorted(parts.items(), key=lambda item: [in_order(value) for value in item[0]])


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
    """Label and unit of a column of outcomes: the test split's exact match, say."""
    if value not in ("test", "validation", "zero_shot_test", "zero_shot_validation"):
        return axis_of(value)
    metrics = sorted({str(name) for name in runs["metric"].dropna()}) or ["metric"]
    label = f"{' or '.join(metrics)}, {value}".replace("_", " ")
    shares = all(metric_facts(runs, name).range == (0.0, 1.0) for name in metrics)
    return Axis(label, "share" if shares else "")


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


def needs(frame: pd.DataFrame, *columns: str) -> None:
    """Nothing, by name, where a column is absent or empty."""
    absent = [column for column in columns if column not in frame or frame[column].isna().all()]
    if absent:
        raise Nothing(f"the results have no {', '.join(absent)}")


def line(name: str, x: Any, y: Any, low: Any = np.nan, high: Any = np.nan, *, note: Any = "") -> pd.DataFrame:
    """Rows of a panel: one series."""
    columns = {"series": name, "x": x, "y": y, "low": low, "high": high, "note": note}
    return pd.DataFrame(columns, index=range(len(x)))


def stack(lines: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Rows of a panel: several series."""
    found = [rows for rows in lines if len(rows)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def means(group: Group, x: str, value: str) -> pd.DataFrame:
    """Rows of a panel: means of `value` over a group's rows at each x, with their 95 % intervals."""
    places = [(float(key[0]), interval(part[value].astype(float))) for key, part in grouped(group.runs, [x])]
    found = [(at, i.estimate, i.low, i.high) for at, i in places]
    notes = [f"n = {i.n}" for _, i in places]
    return line(group.name, *(list(column) for column in zip(*found, strict=True)), note=notes)


def spanning(runs: pd.DataFrame, x: str) -> Axis:
    """The axis of x, logarithmic where the values span about a decade or more, and none is zero."""
    values = pd.to_numeric(runs[x])
    wide = values.min() > 0 and values.max() / values.min() >= 8
    return replace(axis_of(x), log=bool(wide))
