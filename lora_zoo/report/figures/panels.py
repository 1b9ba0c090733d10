"""Panels: one pair of axes each, and those of two numeric axes.

The `rows` of a `Plane` have the columns series, x, y, low and high (NaN where there is no interval) and note.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd

from lora_zoo.report.figures.axes import Axis, Spec, values
from lora_zoo.report.figures.rows import COLUMNS
from lora_zoo.report.figures.style import GREY, LAYERS, Styles

HIDDEN = {"name": "hidden", "value": []}  # the series that a reader has switched off


@dataclass(frozen=True)
class Panel(ABC):
    """One pair of axes."""

    title: str
    x: Axis
    y: Axis
    rows: pd.DataFrame

    shows: ClassVar[str] = ""
    """The marks of a series in the legend: lines, points or both."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels of 1/96 inch on paper."""
        return 235, 175

    @property
    def height(self) -> int:
        """Height in pixels on a screen."""
        return 300

    @property
    def widest(self) -> int:
        """The width in pixels on a screen beyond which it gains nothing; 0 where there is none."""
        return 0

    @property
    def names(self) -> list[str]:
        """The names that the legend explains, in order."""
        return []

    @abstractmethod
    def spec(self, styles: Styles, legend: Spec | None) -> Spec:
        """The panel without its title and size; `legend` is that of the series."""

    @abstractmethod
    def describe(self) -> str:
        """The panel in words, for those who cannot see it."""

    def sized(self, styles: Styles, legend: Spec | None) -> Spec:
        """For print."""
        width, height = self.size
        return {"title": self.title, "width": width, "height": height} | self.spec(styles, legend)

    def responsive(self, styles: Styles) -> Spec:
        """For a screen: as wide as its box, with a parameter that names the series to hide."""
        return {"width": "container", "height": self.height, "params": [HIDDEN]} | self.spec(styles, None)


@dataclass(frozen=True)
class Plane(Panel):
    """Series on two numeric axes."""

    baselines: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS), kw_only=True)
    """Rows of grey lines that bear their names themselves: what chance gives, or the most possible."""

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(self.rows["series"]))

    def of(self, name: str) -> pd.DataFrame:
        """The rows of a series or a baseline."""
        every = pd.concat([self.rows, self.baselines]) if len(self.baselines) else self.rows
        return every[every["series"] == name]

    @property
    def ticks(self) -> list[float]:
        """The only values that x is marked at; empty where it is marked at round numbers."""
        return []

    @abstractmethod
    def layers(self) -> list[Spec]:
        """The series' marks."""

    def behind(self) -> list[Spec]:
        """Marks below the series: the baselines, each with its name above its end."""
        if self.baselines.empty:
            return []
        ends = self.baselines.groupby("series", sort=False).tail(1)
        return [grey(self.baselines, strokeDash=[1.5, 2]), {"data": values(ends), **LAYERS["names"]}]

    def spec(self, styles: Styles, legend: Spec | None) -> Spec:
        if legend and self.shows == "lines":
            legend = legend | {"symbolType": "stroke", "symbolSize": 250, "symbolStrokeWidth": 2}
        encoding = {
            "x": {"field": "x", **self.x.encoding(self._numbers("x"), self.ticks)},
            "y": {"field": "y", **self.y.encoding(self._numbers("y", "low", "high"))},
            "color": scaled(styles, [look.colour for look in styles.values()], legend),
            "tooltip": self.tooltip(),
        }
        marks = [self._with_scales(layer, styles, legend) for layer in self.layers()]
        shown = [f"indexof({HIDDEN['name']}, datum.series) < 0", *(["datum.y > 0"] if self.y.log else [])]
        own = {"transform": [{"filter": test} for test in shown], "layer": marks}
        return {"data": values(self._feet()), "encoding": encoding, "layer": [*self.behind(), own]}

    def _with_scales(self, layer: Spec, styles: Styles, legend: Spec | None) -> Spec:
        """The layer with its lines' dashes and its points' outlines, one of which the legend shows."""
        lines, mark, channels = self.shows == "lines", layer["mark"]["type"], {}
        if mark == "line":
            dashes = [[*look.dash] for look in styles.values()]
            channels = {"strokeDash": scaled(styles, dashes, legend if lines else None)}
        elif mark == "point":
            outlines = [look.marker for look in styles.values()]
            channels = {"shape": scaled(styles, outlines, None if lines else legend)}
        return layer | {"encoding": channels | layer.get("encoding", {})}

    def _feet(self) -> pd.DataFrame:
        """The rows with `foot`, where an interval is drawn from: on a logarithmic axis above zero."""
        least = self.y.domain(self._numbers("y", "low", "high"))[0] if self.y.log else -math.inf
        return self.rows.assign(foot=self.rows["low"].clip(lower=least))

    def _numbers(self, *columns: str) -> list[float]:
        """The finite numbers of series and baselines."""
        parts = [part[name].astype(float) for part in (self.rows, self.baselines) for name in columns]
        return [value for part in parts for value in part if math.isfinite(value)]

    def tooltip(self) -> list[Spec]:
        numbers = {"type": "quantitative", "format": ".4~g"}
        named = {"x": self.x.title, "y": self.y.title, "low": "low", "high": "high"}
        present = {name: title for name, title in named.items() if self.rows[name].notna().any()}
        words = [{"field": name, "type": "nominal"} for name in ("series", "note") if self.rows[name].any()]
        return [*words, *({"field": name, "title": title} | numbers for name, title in present.items())]

    def describe(self) -> str:
        every = pd.concat([self.rows, self.baselines]) if len(self.baselines) else self.rows
        ends = "; ".join(f"{name}: {_ends(own)}" for name, own in every.groupby("series", sort=False))
        return f"{self.title or 'Panel'}, {self.y.title} against {self.x.title}: {ends}."


def grey(rows: pd.DataFrame, **more: Any) -> Spec:
    """Thin grey lines of rows of their own, which the legend does not know."""
    detail = {"detail": {"field": "series"}} if "series" in rows else {}
    encoding = {**detail, "color": {"value": GREY}, "tooltip": {"value": None}}
    return {"data": values(rows), "mark": {"type": "line", "strokeWidth": 1, **more}, "encoding": encoding}


def scaled(styles: Styles, range_: Sequence[Any], legend: Spec | None) -> Spec:
    """A channel that tells the series apart."""
    return {"field": "series", "scale": {"domain": [*styles], "range": range_}, "legend": legend}


def _ends(rows: pd.DataFrame) -> str:
    found = rows[rows["y"].notna()]
    if found.empty:
        return "no values"
    first, last = (f"{found['y'].iloc[i]:.4g} at {found['x'].iloc[i]:.4g}" for i in (0, -1))
    return first if len(found) == 1 else f"from {first} to {last}"
