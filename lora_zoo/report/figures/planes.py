"""Curves with bands, marks with intervals, points, and points with a Pareto front."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import pandas as pd

from lora_zoo.report.figures.axes import Spec, values
from lora_zoo.report.figures.panels import Plane, grey
from lora_zoo.report.figures.style import INK, WORD, Styles, joined

FEW = 12  # ticks or words that do not collide
POINTS: Spec = {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 1}}


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


@final
@dataclass(frozen=True)
class Marks(Plane):
    """Measured points joined by thin lines, with their intervals; `x` takes few values, each a tick."""

    shows: ClassVar[str] = "lines and points"

    def layers(self) -> list[Spec]:
        return [arms(), {"mark": {"type": "line", "strokeWidth": 1.7}}, POINTS]

    @property
    def ticks(self) -> list[float]:
        found = sorted(self.rows["x"].unique().tolist())
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
