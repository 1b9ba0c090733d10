"""Panels of two numeric axes: curves with bands, marks with intervals, points, and those with a Pareto front.

A panel's `rows` have the columns series, x, y, low and high (NaN where there is no interval) and note.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import pandas as pd

from lora_zoo.report.figures.style import GREY, INK, WORD, Styles, joined

FEW = 12  # ticks or words that do not collide
HIDDEN = {"name": "hidden", "value": []}  # the series that a reader has switched off
COLUMNS = ("series", "x", "y", "low", "high", "note")
Spec = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """What is measured along an axis, and in what unit ("" for a number of things)."""

    label: str
    unit: str = ""
    log: bool = False

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Panel(ABC):
    """One pair of axes."""

    title: str
    x: Axis
    y: Axis
    rows: pd.DataFrame

    shows: ClassVar[str] = ""
    """What the legend shows of a series: lines, marks or both."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels of 1/96 inch on paper."""
        return 235, 175

    @property
    def height(self) -> int:
        """Height in pixels on a screen."""
        return 300

    @property
    def names(self) -> list[str]:
        """The names that the legend explains, in order."""
        return []

    @abstractmethod
    def spec(self, styles: Styles, legend: Spec | None) -> Spec:
        """The panel without its title and size; `legend` is that of the series."""

    @abstractmethod
    def describe(self) -> str:
        """What is to be seen, in words, for those who cannot see it."""

    def sized(self, styles: Styles, legend: Spec | None) -> Spec:
        """For print."""
        width, height = self.size
        return {"title": self.title, "width": width, "height": height} | self.spec(styles, legend)

    def responsive(self, styles: Styles) -> Spec:
        """For a screen: as wide as its place, with a parameter that names the series to hide."""
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

    @abstractmethod
    def layers(self) -> list[Spec]:
        """The series' marks."""

    def behind(self) -> list[Spec]:
        """Marks below the series: the baselines, each with its name above its end."""
        if self.baselines.empty:
            return []
        ends = self.baselines.groupby("series", sort=False).tail(1)
        words = {"type": "text", "color": INK, "opacity": 0.75, "align": "right", "dy": -5, "fontSize": WORD}
        names = {
            "data": values(ends),
            "mark": words,
            "encoding": {"text": {"field": "series"}, **_plain(INK)},
        }
        return [grey(self.baselines, strokeDash=[1.5, 2]), names]

    def spec(self, styles: Styles, legend: Spec | None) -> Spec:
        if legend and self.shows == "lines":
            legend = legend | {"symbolType": "stroke", "symbolSize": 250, "symbolStrokeWidth": 2}
        encoding = {
            "x": {"field": "x", **self.axis(self.x, ["x"])},
            "y": {"field": "y", **self.axis(self.y, ["y", "low", "high"])},
            "color": scaled(styles, [look.colour for look in styles.values()], legend),
            "tooltip": self.tooltip(),
        }
        marks = [self._with_scales(layer, styles, legend) for layer in self.layers()]
        shown = [f"indexof({HIDDEN['name']}, datum.series) < 0", *(["datum.y > 0"] if self.y.log else [])]
        own = {"transform": [{"filter": test} for test in shown], "layer": marks}
        return {"data": values(self._feet()), "encoding": encoding, "layer": [*self.behind(), own]}

    def _with_scales(self, layer: Spec, styles: Styles, legend: Spec | None) -> Spec:
        """The layer with its lines' dashes and its points' outlines, one of which the legend shows."""
        channels: Spec = {}
        if layer["mark"]["type"] == "line":
            dashes = [[*look.dash] for look in styles.values()]
            channels["strokeDash"] = scaled(styles, dashes, legend if self.shows == "lines" else None)
        if layer["mark"]["type"] == "point":
            outlines = [look.marker for look in styles.values()]
            channels["shape"] = scaled(styles, outlines, None if self.shows == "lines" else legend)
        return layer | {"encoding": channels | layer.get("encoding", {})}

    def _feet(self) -> pd.DataFrame:
        """The rows with `foot`, where an interval is drawn from: on a logarithmic axis above zero."""
        least = self._domain(["y", "low", "high"])[0] if self.y.log else -math.inf
        return self.rows.assign(foot=self.rows["low"].clip(lower=least))

    def _domain(self, columns: Sequence[str]) -> tuple[float, float]:
        """The ends of a logarithmic axis: what is positive, and a little more."""
        positive = [value for value in self._numbers(columns) if value > 0] or [1.0, 10.0]
        more = (max(positive) / min(positive)) ** 0.03
        return min(positive) / more, max(positive) * more

    def _numbers(self, columns: Sequence[str]) -> list[float]:
        parts = [
            part[name].astype(float).tolist() for part in (self.rows, self.baselines) for name in columns
        ]
        return [value for part in parts for value in part if math.isfinite(value)]

    def tooltip(self) -> list[Spec]:
        numbers = {"type": "quantitative", "format": ".4~g"}
        named = {"x": self.x.title, "y": self.y.title, "low": "low", "high": "high"}
        present = {name: title for name, title in named.items() if self.rows[name].notna().any()}
        words = [{"field": name, "type": "nominal"} for name in ("series", "note") if self.rows[name].any()]
        return [*words, *({"field": name, "title": title} | numbers for name, title in present.items())]

    def axis(self, axis: Axis, columns: Sequence[str]) -> Spec:
        """Type, scale and ticks; a logarithmic axis spans what is positive."""
        ruler: Spec = {"title": axis.title}
        scale: Spec = {"type": "linear", "zero": False}
        if max(map(abs, self._numbers(columns)), default=0) >= 2e4:
            ruler["format"] = "~s"
        if axis.log:
            ends = self._domain(columns)
            scale = {"type": "log", "domain": [_rounded(end) for end in ends]}
            ruler = {"format": ".6~g", "values": log_ticks(*ends)} | ruler
        if ticks := self.ticks(columns[0]):
            ruler |= {"format": ".6~g", "values": ticks}
        return {"type": "quantitative", "scale": scale, "axis": ruler}

    def ticks(self, column: str) -> list[float]:
        """The only values that this axis is marked at; empty where it is marked at round numbers."""
        return []

    def describe(self) -> str:
        series = [*self.names, *dict.fromkeys(self.baselines["series"])]
        ends = "; ".join(f"{name}: {_ends(self.of(name))}" for name in series)
        return f"{self.title or 'Panel'}, {self.y.title} against {self.x.title}: {ends}."


def _plain(colour: str) -> Spec:
    """Channels of what is no series."""
    return {"color": {"value": colour}, "tooltip": {"value": None}}


def values(rows: pd.DataFrame) -> Spec:
    """The rows as Vega-Lite's data: six digits are more than any plot shows, and JSON has no NaN."""
    return {"values": json.loads(rows.to_json(orient="records", double_precision=15), parse_float=_rounded)}


def _rounded(number: float | str) -> float:
    return float(f"{float(number):.6g}")


def grey(rows: pd.DataFrame, **more: Any) -> Spec:
    """Thin grey lines of rows of their own, which the legend does not know."""
    detail = {"detail": {"field": "series"}} if "series" in rows else {}
    mark = {"type": "line", "strokeWidth": 1, **more}
    return {"data": values(rows), "mark": mark, "encoding": detail | _plain(GREY)}


def scaled(styles: Styles, range_: Sequence[Any], legend: Spec | None) -> Spec:
    """A channel that tells the series apart."""
    return {"field": "series", "scale": {"domain": [*styles], "range": range_}, "legend": legend}


def log_ticks(least: float, most: float) -> list[float]:
    """The decades, and 2 and 5 of each where there are few."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    digits = (1, 2, 5) if most / least <= 100 else (1,)
    return [float(f"{digit}e{decade}") for decade in decades for digit in digits]


def _ends(rows: pd.DataFrame) -> str:
    found = rows[rows["y"].notna()]
    if found.empty:
        return "no values"
    first, last = (f"{found['y'].iloc[i]:.4g} at {found['x'].iloc[i]:.4g}" for i in (0, -1))
    return first if len(found) == 1 else f"from {first} to {last}"


def arms() -> Spec:
    """Error bars from low to high."""
    ends = {"y": {"field": "foot", "title": None}, "y2": {"field": "high"}}
    return {
        "transform": [{"filter": "isValid(datum.low) && datum.low < datum.high"}],
        "mark": {"type": "rule", "strokeWidth": 1.2},
        "encoding": ends,
    }


@final
@dataclass(frozen=True)
class Bands(Plane):
    """Curves, each with a band from `low` to `high`; `stairs` fall at the next x."""

    stairs: bool = field(default=False, kw_only=True)
    shows: ClassVar[str] = "lines"

    def layers(self) -> list[Spec]:
        step = {"interpolate": "step-after"} if self.stairs else {}
        ends = {"y": {"field": "foot", "title": None}, "y2": {"field": "high"}, "tooltip": {"value": None}}
        area = {"type": "area", "opacity": 0.18, "line": False, **step}
        curve = {"mark": {"type": "line", "strokeWidth": 2, "clip": True, **step}}
        found = [{"mark": area, "encoding": ends}, curve] if self.rows["low"].notna().any() else [curve]
        lone = self.rows.groupby("series")["x"].transform("size") == 1
        return [*found, {"data": values(self.rows[lone]), **POINTS}] if lone.any() else found

    def responsive(self, styles: Styles) -> Spec:
        """With points that are not seen, for a pointer to find."""
        drawn = super().responsive(styles)
        drawn["layer"][-1]["layer"].append({"mark": {"type": "circle", "size": 60, "opacity": 0}})
        return drawn


POINTS: Spec = {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 1}}


@final
@dataclass(frozen=True)
class Marks(Plane):
    """Measured points joined by thin lines, with their intervals; `x` takes few values, each a tick."""

    shows: ClassVar[str] = "lines and points"

    def layers(self) -> list[Spec]:
        return [arms(), {"mark": {"type": "line", "strokeWidth": 1.7}}, POINTS]

    def ticks(self, column: str) -> list[float]:
        found = sorted(self.rows["x"].unique().tolist()) if column == "x" else []
        return found if len(found) <= FEW else []


@final
@dataclass(frozen=True)
class Points(Plane):
    """Measured points with nothing between them."""

    shows: ClassVar[str] = "points"

    def layers(self) -> list[Spec]:
        return [{"mark": POINTS["mark"] | {"opacity": 0.8, "size": 25}}]

    def describe(self) -> str:
        counts = "; ".join(
            f"{len(own)} points of {name}, y from {own['y'].min():.4g} to {own['y'].max():.4g}"
            for name, own in self.rows.groupby("series", sort=False)
        )
        return f"{self.title or 'Panel'}, {self.y.title} against {self.x.title}: {counts}."


@final
@dataclass(frozen=True)
class Front(Plane):
    """Points, and the staircase through those that none of the others beats on both axes.

    Less of x is better, and more of y where `sign` is 1, less of it where that is -1.
    """

    sign: int = 1
    shows: ClassVar[str] = "points"

    @property
    def front(self) -> pd.DataFrame:
        """The staircase's corners, from left to right."""
        known = self.rows[["x", "y"]].dropna().drop_duplicates()
        known = known.assign(score=known["y"] * self.sign).sort_values(
            ["x", "score"], ascending=[True, False]
        )
        return known[known["score"] > known["score"].cummax().shift(fill_value=-math.inf)].drop(
            columns="score"
        )

    def behind(self) -> list[Spec]:
        return [*super().behind(), grey(self.front, interpolate="step-after")]

    def layers(self) -> list[Spec]:
        beside = {"type": "text", "align": "left", "dx": 5, "dy": -5, "fontSize": WORD}
        words = {"mark": beside, "encoding": {"text": {"field": "note"}, "color": {"value": INK}}}
        return [arms(), POINTS, *([words] if len(self.rows) <= FEW else [])]

    def describe(self) -> str:
        best = self.rows.merge(self.front, on=["x", "y"])
        names = [joined(series, note) for series, note in zip(best["series"], best["note"], strict=True)]
        return f"{super().describe()} On the Pareto front: {', '.join(names) or 'none'}."
