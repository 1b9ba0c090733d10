"""Curves with bands, marks with intervals, points, and points with a Pareto front."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import pandas as pd

from lora_zoo.report.figures.axes import Spec, values
from lora_zoo.report.figures.panels import Plane, grey
from lora_zoo.report.figures.style import LAYERS, Styles, joined

FEW = 12  # ticks or words that do not collide


@final
@dataclass(frozen=True)
class Bands(Plane):
    """Curves, each with a band from `low` to `high`; `stairs` fall at the next x."""

    stairs: bool = field(default=False, kw_only=True)
    shows: ClassVar[str] = "lines"

    def layers(self) -> list[Spec]:
        found = [LAYERS["band"], LAYERS["curve"]] if self.rows["low"].notna().any() else [LAYERS["curve"]]
        if self.stairs:
            found = [layer | {"mark": layer["mark"] | {"interpolate": "step-after"}} for layer in found]
        lone = self.rows.groupby("series")["x"].transform("size") == 1
        return [*found, {"data": values(self.rows[lone]), **LAYERS["points"]}] if lone.any() else found

    def responsive(self, styles: Styles) -> Spec:
        """With points that are not seen, for a pointer to find."""
        drawn = super().responsive(styles)
        drawn["layer"][-1]["layer"].append(LAYERS["unseen"])
        return drawn


@final
@dataclass(frozen=True)
class Marks(Plane):
    """Measured points joined by thin lines, with their intervals; `x` takes few values, each a tick."""

    shows: ClassVar[str] = "lines and points"

    def layers(self) -> list[Spec]:
        return [LAYERS["arms"], LAYERS["thin"], LAYERS["points"]]

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
        return [LAYERS["cloud"]]

    def describe(self) -> str:
        counts = "; ".join(
            f"{len(own)} points of {name}, y from {own['y'].min():.4g} to {own['y'].max():.4g}"
            for name, own in self.rows.groupby("series", sort=False)
        )
        return f"{self.title or 'Panel'}, {self.y.title} against {self.x.title}: {counts}."


@final
@dataclass(frozen=True)
class Crosses(Plane):
    """Points with intervals both ways: that of x goes from `left` to `right`, columns of the rows."""

    shows: ClassVar[str] = "points"

    def layers(self) -> list[Spec]:
        words = [LAYERS["notes"]] if len(self.rows) <= FEW else []
        return [LAYERS["arms"], LAYERS["across"], LAYERS["points"], *words]


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
        known = known.assign(loss=known["y"] * -self.sign).sort_values(["x", "loss"])
        return known[known["loss"] < known["loss"].cummin().shift(fill_value=math.inf)][["x", "y"]]

    def behind(self) -> list[Spec]:
        return [*super().behind(), grey(self.front, interpolate="step-after")]

    def layers(self) -> list[Spec]:
        words = [LAYERS["notes"]] if len(self.rows) <= FEW else []
        return [LAYERS["arms"], LAYERS["points"], *words]

    def describe(self) -> str:
        best = self.rows.merge(self.front, on=["x", "y"])
        names = [joined(series, note) for series, note in zip(best["series"], best["note"], strict=True)]
        return f"{super().describe()} On the Pareto front: {', '.join(names) or 'none'}."
