"""Runs grouped for a figure: a group is all seeds of one setting, named so that a person knows it."""

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.columns import plain
from lora_zoo.report.figures.style import joined
from lora_zoo.report.titles import BARE, written

MOST = 10  # series that a panel can hold and a reader tell apart
SHORT = {"rank": "r", "alpha": "α", "lora_dropout": "dropout ", "weight_decay": "decay ", "layers": "layers "}


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
    if plain(value) is None:
        return (2, 0.0, "")
    if isinstance(value, Real):
        return (0, float(value), "")
    return (1, float(str(value).count(",")), str(value))


def word(axis: str, value: Any) -> str:
    """A value as part of a name: r8, LoRA, q,v, learning rate 0.01; "" for what a variant does not have."""
    if plain(value) is None:
        return ""
    said = f"{value:g}" if isinstance(value, float) else str(value)
    if axis in BARE:
        return written(axis, said)
    return SHORT.get(axis, f"{axis.rpartition('.')[2]} ") + said


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
