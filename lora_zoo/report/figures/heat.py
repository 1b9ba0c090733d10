"""Heat maps, with their numbers written into the cells where these are few."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lora_zoo.report.figures.chart import Axis, Panel, escaped, finite, plain
from lora_zoo.report.figures.looks import SCALE, Looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 14  # columns beyond which numbers would not be readable
PICTURE = 8  # rows of numbers that are as high as a picture at most


@final
@dataclass(frozen=True)
class Heat(Panel):
    """`values[row][column]`, NaN where nothing was measured.

    The numbers are written into the cells of up to 14 columns; a greater map is a picture, not a table.

    `low` and `high` are the ends of the colour scale, the same for panels that are to be compared; the
    chart's or the panel's title says what `colour` says, the bar beside the map does not repeat it.
    """

    title: str
    x: Axis
    y: Axis
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    colour: Axis
    low: float
    high: float
    digits: int = 3
    notes: Sequence[Sequence[str]] = ()
    """More on each cell, shown on hovering: how many runs, the interval."""

    @property
    def size(self) -> tuple[float, float]:
        if self._is_picture:
            return (3.4, 0.9 + 0.24 * min(len(self.rows), PICTURE))
        return (max(2.8, 1.4 + 0.34 * len(self.columns)), max(1.5, 0.9 + 0.24 * len(self.rows)))

    @property
    def pixels(self) -> int:
        rows = min(len(self.rows), PICTURE) if self._is_picture else len(self.rows)
        return 110 + 34 * max(3, rows)

    @property
    def _is_picture(self) -> bool:
        return len(self.columns) > MANY

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}g}" if math.isfinite(value) else ""

    def draw(self, axes: "Axes", looks: Looks) -> None:
        grid_RC = np.array(self.values, dtype=float)
        image = axes.imshow(grid_RC, cmap=SCALE, vmin=self.low, vmax=self.high, aspect="auto")
        for names, ticks in ((self.columns, axes.set_xticks), (self.rows, axes.set_yticks)):
            every = math.ceil(len(names) / MANY)
            ticks(range(0, len(names), every), [plain(name) for name in names[::every]])
        axes.set_xlabel(plain(self.x.title))
        axes.set_ylabel(plain(self.y.title))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if not self._is_picture:
            self._write(axes, grid_RC)
        if self.high > self.low:
            axes.figure.colorbar(image, ax=axes, shrink=0.9).outline.set_visible(False)

    def _write(self, axes: "Axes", grid_RC: "np.ndarray[Any, Any]") -> None:
        middle = (self.low + self.high) / 2
        for (row, column), value in np.ndenumerate(grid_RC):
            ink = "white" if value < middle else "black"
            axes.text(column, row, self.text(value), ha="center", va="center", color=ink, fontsize=6)

    def plotly(self, looks: Looks) -> dict[str, Any]:
        trace = {
            "type": "heatmap",
            "x": [escaped(column) for column in self.columns],
            "y": [escaped(row) for row in self.rows],
            "z": [finite(row) for row in self.values],
            "zmin": self.low,
            "zmax": self.high if self.high > self.low else self.low + 1,
            "colorscale": SCALE.title(),
            "colorbar": {"thickness": 10, "outlinewidth": 0},
            "showscale": self.high > self.low,
            "hoverongaps": False,
            "xgap": int(not self._is_picture),
            "ygap": int(not self._is_picture),
            "hovertemplate": "%{y}, %{x}: %{z:.4g}%{customdata}<extra></extra>",
            "customdata": [[f"<br>{escaped(n)}" if n else "" for n in row] for row in self._notes()],
        }
        if not self._is_picture:
            trace |= {"text": [[self.text(v) for v in row] for row in self.values], "texttemplate": "%{text}"}
        x = {"type": "category", "title": {"text": escaped(self.x.title)}, "automargin": True}
        y = {"type": "category", "title": {"text": escaped(self.y.title)}, "automargin": True}
        return {"data": [trace], "layout": {"xaxis": x, "yaxis": y | {"autorange": "reversed"}}}

    def _notes(self) -> Sequence[Sequence[str]]:
        return self.notes or [[""] * len(self.columns) for _ in self.rows]

    def said(self) -> str:
        cells = [
            (value, row, column)
            for row, line in zip(self.rows, self.values, strict=True)
            for column, value in zip(self.columns, line, strict=True)
            if math.isfinite(value)
        ]
        what = f"{self.title or 'Panel'}, {self.colour.title} by {self.y.label} and {self.x.label}"
        if not cells:
            return f"{what}: no values."
        (least, row, column), (most, row_most, column_most) = min(cells), max(cells)
        low, high = self.text(least), self.text(most)
        return f"{what}: from {low} ({row}, {column}) to {high} ({row_most}, {column_most})."


__all__ = ["Heat"]
