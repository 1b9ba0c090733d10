"""What a table is made of: its cells, the paper's numbers, where each stands and how it is marked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.columns import format_value
from lora_zoo.analysis.comparison import Cell, Cells
from lora_zoo.report.typeset import ABSENT, Content, Look, Measured, Quoted

_NOT_AXES = ("value", "spread", "of")
_SHARES = 1.5  # a paper's number above it, beside ours up to 1, is in percent


class TargetMatrix(NamedTuple):
    """Of a cell among those it is compared with."""

    mark: str
    tied: bool


NOWHERE = TargetMatrix("", False)  # alone, it is compared with nothing


@dataclass
class Plan:
    """What a table is made of: cells, where each stands, and the paper's numbers, by their keys as text."""

    about: Mapping[str, Any]
    cells: Cells
    rows: list[str]
    columns: list[str]
    runs: pd.DataFrame

    def __post_init__(self) -> None:
        self.by = [*self.rows, *self.columns]
        self.quoted = list(self.about.get("reference", []))
        self.places = dict(_places(self.cells))
        self.measured = {words_of(cell.key, self.by): cell for cell in self.cells.cells}
        look = _look(self.cells.cells, self.quoted)
        self.look = look if self.columns else look._replace(n_shown=False)

    def keys(self, axes: Sequence[str]) -> list[tuple[str, ...]]:
        """The values of these axes that were measured or that the paper has, in the experiment's order."""
        known: list[Mapping[str, Any]] = [cell.key for cell in self.cells.cells]
        known += [quote for quote in self.quoted if set(axes) <= set(quote)]
        found = dict.fromkeys(words_of(key, axes) for key in known)
        orders = [_order(axis, self.about.get("grid", {}), known) for axis in axes]
        return sorted(found, key=lambda words: [order[w] for order, w in zip(orders, words, strict=True)])

    def entry(self, words: tuple[str, ...]) -> Content:
        cell = self.measured.get(words)
        if cell is None or not cell.n:
            return ABSENT
        place, interval = self.places.get(words, NOWHERE), cell.interval
        return Measured(cell.mean, interval.low, interval.high, cell.n, self.look, place.mark, place.tied)

    def quote(self, words: tuple[str, ...]) -> Mapping[str, Any] | None:
        """The paper's number for a cell; an axis that the paper's entry leaves open fits every value."""
        cell = dict(zip(self.by, words, strict=True))
        for quote in self.quoted:
            given = {axis: format_value(value) for axis, value in quote.items() if axis not in _NOT_AXES}
            if given and all(cell.get(axis) == value for axis, value in given.items()):
                return quote
        return None

    def quote_entry(self, words: tuple[str, ...]) -> Content:
        quote = self.quote(words)
        return ABSENT if quote is None else Quoted(quote["value"], quote.get("spread"))


def _places(found: Cells) -> Iterable[tuple[tuple[str, ...], TargetMatrix]]:
    """The best, the second and those that cannot be told from the best, of each task and model by itself."""
    parts = [found]
    for axis in ("task", "model"):
        if axis in found.by:
            parts = [inner for part in parts for inner in part.within(axis).values()]
    for part in parts:
        sign = 1 if part.better == "lower" else -1
        ranked = sorted((cell for cell in part.cells if cell.n), key=lambda cell: sign * cell.mean)
        if len(ranked) < 2 or not part.better:
            continue
        tied = set(part.tied()) - {part.best()}
        marks = {ranked[1]: "second", part.best(): "best"}
        for cell in ranked:
            yield words_of(cell.key, found.by), TargetMatrix(marks.get(cell, ""), cell in tied)


def _look(found: Sequence[Cell], quoted: Sequence[Mapping[str, Any]]) -> Look:
    """Percent where the paper's numbers are; three digits that differ; n in each cell where it is unequal."""
    means = [abs(cell.mean) for cell in found if cell.n]
    top, n_shown = max(means, default=0.0), len({cell.n for cell in found}) > 1
    percent = top <= 1 and any(quote["value"] > _SHARES for quote in quoted)
    scale = 100.0 if percent else 1.0
    decimals = 1 if percent else 3 if top < 10 else 1 if top < 1000 else 0
    return Look(scale, decimals, n_shown)


def words_of(key: Mapping[str, Any], axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(format_value(key[axis]) for axis in axes)


def _order(
    axis: str, grid: Mapping[str, Any], known: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[Any, ...]]:
    """The place of each value: the grid's, else numbers by size, else as they come."""
    given = [_said(value) for value in grid.get(axis, [])]
    values = dict.fromkeys(format_value(key[axis]) for key in known if axis in key)
    return {word: _at(word, given, number) for number, word in enumerate(values)}


def _said(value: Any) -> str:
    """A value of a grid as the frame has it: [q, v] and "[q,v]" are q,v there."""
    text = ",".join(map(str, value)) if isinstance(value, list) else format_value(value)
    return text.strip("[]").replace(" ", "")


def _at(word: str, given: Sequence[str], number: int) -> tuple[Any, ...]:
    if word in given:
        return (0, given.index(word))
    try:
        return (1, float(word))
    except ValueError:
        return (2, number)
