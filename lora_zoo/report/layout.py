"""The layout of a table: its cells, the paper's numbers, the order of both, and their marks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.columns import format_value
from lora_zoo.analysis.comparison import Cell, Cells
from lora_zoo.report.render import TableCell
from lora_zoo.report.titles import written

NOT_AXES = ("value", "spread", "of")
APART = ("task", "model")
"""Axes whose values are no contenders: outcomes of different ones do not compare."""
SHARES = 1.5  # a paper's number above it, beside ours up to 1, is in percent
Words = tuple[str, ...]


class NumberFormat(NamedTuple):
    """Times `scale`, with so many decimals, with n in each cell or not."""

    scale: float
    decimals: int
    n_shown: bool

    def number(self, value: float) -> str:
        return f"{value * self.scale:,.{self.decimals}f}"


@dataclass
class Layout:
    """The cells and the paper's numbers by their keys as text."""

    about: Mapping[str, Any]
    found: Cells
    rows: list[str]
    columns: list[str]
    runs: pd.DataFrame
    doubts: Sequence[str] = ()
    """What is wrong with the runs, a sentence each."""

    def __post_init__(self) -> None:
        self.by = [*self.rows, *self.columns]
        tasks = {*self.runs["task"]}
        self.quoted = [q for q in self.about.get("reference", []) if q.get("task") in {None, *tasks}]
        self.marks = dict(_marks(self.found))
        self.measured = {_words(cell.key, self.by): cell for cell in self.found.cells}
        told = self.runs.set_index("run").get("degenerate", pd.Series(dtype=object))
        self.unlearned = {
            words
            for words, cell in self.measured.items()
            if cell.n and told.reindex(cell.runs).fillna("").astype(bool).all()
        }
        for words in self.unlearned & self.marks.keys():
            self.marks[words] = ("", self.marks[words][1])  # nothing was learned that could be best
        self.form = _number_format(self.found.cells, self.quoted, bool(self.columns))

    def keys(self, axes: Sequence[str]) -> list[Words]:
        """The values of these axes that were measured or that the paper has, in the experiment's order."""
        known: list[Mapping[str, Any]] = [cell.key for cell in self.found.cells]
        known += [quote for quote in self.quoted if set(axes) <= set(quote)]
        found = dict.fromkeys(_words(key, axes) for key in known)
        orders = [_order(axis, self.about.get("grid", {}), known) for axis in axes]
        return sorted(found, key=lambda words: [order[w] for order, w in zip(orders, words, strict=True)])

    def task(self, words: Words) -> str:
        return words[self.by.index("task")] if "task" in self.by else ""

    def name(self, cell: Cell) -> str:
        """A cell's name within its family, as people write it."""
        own = [(axis, format_value(cell.key[axis])) for axis in self.by if axis not in APART]
        words = [written(axis, value, alone=False) for axis, value in own if value != "-"]
        return ", ".join(words) or "all runs"

    def text(self, cell: Cell) -> str:
        """Mean, half of the interval, and the number of runs."""
        percent = " %" if self.form.scale != 1 else ""
        return f"{self.cell(_words(cell.key, self.by)).text}{percent} (n = {cell.n})"

    def header(self, words: Words) -> Words:
        """The values of the rows' axes, for people."""
        return tuple(written(axis, word) for axis, word in zip(self.rows, words, strict=True))

    def runs_of(self, part: Cells) -> pd.DataFrame:
        """The runs behind these cells."""
        return self.runs[self.runs["run"].isin({run for cell in part.cells for run in cell.runs})]

    def variant(self, cell: Cell) -> str:
        return str(self.runs.loc[self.runs["run"] == cell.runs[0], "variant"].iloc[0])

    def learned(self, cell: Cell) -> bool:
        return _words(cell.key, self.by) not in self.unlearned

    def cell(self, words: Words) -> TableCell:
        cell = self.measured.get(words)
        if cell is None or not cell.n:
            return TableCell("-")
        half = (cell.interval.high - cell.interval.low) / 2
        spread = "" if pd.isna(half) else f" ± {self.form.number(half)}"
        text = f"{self.form.number(cell.mean)}{spread}"
        return TableCell(text, *self.marks.get(words, ("", False)), cell.n if self.form.n_shown else 0)

    def quote(self, words: Words) -> Mapping[str, Any] | None:
        """The paper's number for a cell; an axis that the paper's entry leaves open fits every value."""
        cell = dict(zip(self.by, words, strict=True))
        for quote in self.quoted:
            given = {axis: format_value(value) for axis, value in quote.items() if axis not in NOT_AXES}
            if given and all(cell.get(axis) == value for axis, value in given.items()):
                return quote
        return None

    def quoted_cell(self, words: Words) -> TableCell:
        """The paper's own number, as printed there, with its spread where the paper gives one."""
        quote = self.quote(words)
        if quote is None:
            return TableCell("-")
        spread = quote.get("spread")
        return TableCell(f"{quote['value']:g}" + ("" if spread is None else f" ± {spread:g}"))


def families(found: Cells) -> list[tuple[Words, Cells]]:
    """The cells that are compared with each other: those of each task and model, after their names."""
    parts: list[tuple[Words, Cells]] = [((), found)]
    for axis in APART:
        if axis in found.by:
            parts = [
                ((*name, format_value(value)), inner)
                for name, part in parts
                for value, inner in part.within(axis).items()
            ]
    return parts


def _marks(found: Cells) -> Iterator[tuple[Words, tuple[str, bool]]]:
    """best or second, and whether it ties with the best: of each task and model by itself."""
    for _, part in families(found):
        sign = 1 if part.better == "lower" else -1
        ranked = sorted((cell for cell in part.cells if cell.n), key=lambda cell: sign * cell.mean)
        if len(ranked) < 2 or not part.better:
            continue
        first = [cell for cell in ranked if math.isclose(cell.mean, ranked[0].mean, rel_tol=1e-12)]
        tied = set(part.tied()) - ({part.best()} if len(first) == 1 else set())
        marks = {ranked[1]: "second", part.best(): "best"} if len(first) == 1 else {}
        for cell in ranked:
            yield _words(cell.key, found.by), (marks.get(cell, ""), cell in tied)


def _number_format(found: Sequence[Cell], quoted: Sequence[Mapping[str, Any]], grid: bool) -> NumberFormat:
    """Percent where the paper's numbers are; three digits of the greatest; n in each cell if it differs."""
    top = max((abs(cell.mean) for cell in found if cell.n), default=0.0)
    n_shown = grid and len({cell.n for cell in found}) > 1
    if top <= 1 and any(quote["value"] > SHARES for quote in quoted):
        return NumberFormat(100.0, 1, n_shown)
    further = min(int(-math.log10(top)), 6) if 0 < top < 1 else 0
    return NumberFormat(1.0, 3 + further if top < 10 else 1 if top < 1000 else 0, n_shown)


def _words(key: Mapping[str, Any], axes: Sequence[str]) -> Words:
    return tuple(format_value(key[axis]) for axis in axes)


def _order(axis: str, grid: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rank of each value: the grid's, else numbers by size, else as they come."""
    given = [_in_frame(value) for value in grid.get(axis, [])]
    words = list(dict.fromkeys(format_value(key[axis]) for key in known if axis in key))
    numbers = pd.to_numeric(pd.Series(words, dtype=object), errors="coerce")
    return {
        word: (0, given.index(word)) if word in given else (2, i) if pd.isna(number) else (1, number)
        for i, (word, number) in enumerate(zip(words, numbers, strict=True))
    }


def _in_frame(value: Any) -> str:
    """A value of a grid as the frame has it: [q, v] and "[q,v]" are q,v there."""
    text = ",".join(map(str, value)) if isinstance(value, list) else format_value(value)
    return text.strip("[]").replace(" ", "")
