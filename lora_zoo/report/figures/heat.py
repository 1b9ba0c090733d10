"""Heat maps, with their numbers written into the cells where these are few."""

import math
from dataclasses import dataclass, field
from typing import Any, final

import pandas as pd

from lora_zoo.report.figures.axes import Axis, values
from lora_zoo.report.figures.panels import Panel
from lora_zoo.report.figures.style import SCHEME, WORD, Styles

MANY = 14  # columns beyond which numbers would not be readable
PICTURE = 8  # rows of numbers that are as high as a picture at most


@final
@dataclass(frozen=True)
class Heat(Panel):
    """`rows` have the columns column, row, value and note; what is not among them was not measured.

    The numbers are written into the cells of up to 14 columns; a greater map is a picture, not a table.
    `low` and `high` are the ends of the colour scale, the same for panels that are to be compared.
    """

    colour: Axis
    low: float
    high: float
    digits: int = field(default=3, kw_only=True)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(self.rows["column"]))

    @property
    def lines(self) -> list[str]:
        return list(dict.fromkeys(self.rows["row"]))

    @property
    def is_picture(self) -> bool:
        return len(self.columns) > MANY

    @property
    def deep(self) -> int:
        """The rows of numbers that would be as high."""
        return min(len(self.lines), PICTURE) if self.is_picture else len(self.lines)

    @property
    def size(self) -> tuple[float, float]:
        if self.is_picture:
            return 256, 24 * self.deep
        return max(150, 36 * len(self.columns)), max(70, 24 * self.deep)

    @property
    def height(self) -> int:
        return 34 * max(3, self.deep)

    @property
    def widest(self) -> int:
        return 0 if self.is_picture else 200 + 100 * len(self.columns)

    def spec(self, styles: Styles, legend: dict[str, Any] | None) -> dict[str, Any]:
        ends = [self.low, self.high if self.high > self.low else self.low + 1]
        scale = {"scheme": SCHEME, "domain": ends}
        bar = {"title": None, "orient": "right", "format": ".4~g", "gradientLength": min(self.size[1], 160)}
        numbers = {"field": "value", "type": "quantitative"}
        shade = {**numbers, "scale": scale, "legend": bar if self.high > self.low else None}
        seamless = {"width": {"band": 1.1}, "height": {"band": 1.1}} if self.is_picture else {}
        colours = {"color": shade, "tooltip": self._tooltip()}
        cells = {"mark": {"type": "rect", **seamless}, "encoding": colours}
        ink = {"condition": {"test": f"datum.value < {sum(ends) / 2!r}", "value": "white"}, "value": "black"}
        text = numbers | {"format": f".{self.digits}~g"}
        words = {"mark": {"type": "text", "fontSize": WORD}, "encoding": {"text": text, "color": ink}}
        x, y = self._names("column", self.x, self.columns), self._names("row", self.y, self.lines)
        layers = [cells] if self.is_picture else [cells, words]
        rows = values(self.rows.dropna(subset=["value"]))
        return {"data": rows, "encoding": {"x": x, "y": y}, "layer": layers}

    def _names(self, name: str, axis: Axis, known: list[str]) -> dict[str, Any]:
        ruler = {"title": axis.title, "labelAngle": 0, "ticks": False, "domain": False}
        ruler["values"] = known[:: math.ceil(len(known) / MANY)]
        return {"field": name, "type": "ordinal", "sort": known, "axis": ruler, "scale": {"padding": 0}}

    def _tooltip(self) -> list[dict[str, Any]]:
        words = [("row", self.y.title), ("column", self.x.title), ("note", "runs")]
        named = [{"field": name, "title": title} for name, title in words if self.rows[name].any()]
        number = {"field": "value", "type": "quantitative", "format": ".4~g", "title": self.colour.title}
        return [*named, number]

    def describe(self) -> str:
        what = f"{self.title or 'Panel'}, {self.colour.title} by {self.y.label} and {self.x.label}"
        found = self.rows.dropna(subset=["value"]).sort_values("value", kind="stable")
        if found.empty:
            return f"{what}: no values."
        ends = [f"{c.value:.{self.digits}g} ({c.row}, {c.column})" for c in found.iloc[[0, -1]].itertuples()]
        return f"{what}: from {' to '.join(ends)}."


def unstacked(table: pd.DataFrame) -> pd.DataFrame:
    """A table's numbers as rows of a `Heat`."""
    i, j = table.notna().to_numpy().nonzero()
    names = {"row": table.index[i].map(str), "column": table.columns[j].map(str)}
    return pd.DataFrame({**names, "value": table.to_numpy(dtype=float)[i, j], "note": ""})
