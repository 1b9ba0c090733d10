"""Contenders in the order of their outcomes: a dot and its interval a row, baselines as lines."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import pandas as pd

from lora_zoo.report.figures.axes import Axis, Spec, values
from lora_zoo.report.figures.panels import Panel
from lora_zoo.report.figures.style import COLOURS, GREY, INK, WORD, Styles

ROW = 20  # pixels
FAR = 2.0  # times the span of the rows, beyond which a baseline would leave no room for them


@final
@dataclass(frozen=True)
class Dots(Panel):
    """`rows` have the columns series, x, low, high (NaN where there is no interval), note and tied.

    They are drawn from above in their order; rows that are `tied` with the best are shaded.
    """

    lines: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["series", "x"]), kw_only=True)
    """Baselines: series and x."""
    shows: ClassVar[str] = "points"

    @property
    def height(self) -> int:
        return ROW * len(self.rows) + 12 * len(self.lines)

    @property
    def size(self) -> tuple[float, float]:
        return 320, 15 * len(self.rows)

    def spec(self, styles: Styles, legend: Spec | None) -> Spec:
        placed = self._placed()
        inside = placed[~placed["beyond"]]
        numbers = [*self._numbers(), *inside["x"]]
        ends = self.x if self.x.range else Axis(self.x.title, range=(-math.inf, math.inf))
        low, high = ends.bounded(numbers)
        across = {"field": "x", **ends.encoding(numbers)}
        down: Spec = {"field": "series", "type": "nominal", "sort": [*self.rows["series"]]}
        down["axis"] = {"title": None, "ticks": False, "domain": False, "labelLimit": 200}
        best = {"condition": {"test": "datum.tied", "value": COLOURS[0]}, "value": GREY}
        shade = {"x": {"value": 0}, "x2": {"value": "width"}, "color": {"value": COLOURS[0]}}
        tied = [{"filter": "datum.tied"}]
        arm = {"x": {"field": "low", "title": None}, "x2": {"field": "high"}, "color": best}
        sound = [{"filter": "isValid(datum.low) && datum.low < datum.high"}]
        marks = [
            {"transform": tied, "mark": {"type": "rect", "opacity": 0.13}, "encoding": shade},
            {
                "data": values(inside),
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": INK, "opacity": 0.7},
                "encoding": {"y": {"value": 0}, "y2": {"value": "height"}, "tooltip": {"value": None}},
            },
            *self._words(placed, low, high),
            {"transform": sound, "mark": {"type": "rule", "strokeWidth": 1.5, "clip": True}, "encoding": arm},
            {
                "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                "encoding": {"color": best},
            },
        ]
        encoding = {"x": across, "y": down, "tooltip": self._tooltip()}
        return {"data": values(self.rows), "encoding": encoding, "layer": marks}

    def _words(self, placed: pd.DataFrame, low: float, high: float) -> list[Spec]:
        """The baselines' names above the plot, each on a line of its own, on the side where there is room."""
        found: list[Spec] = []
        for i, line in enumerate(placed.to_dict("records")):
            at = min(max(line["x"], low), high)
            right = at > (low + high) / 2
            text = f"{line['series']} {line['x']:.3g}"
            if line["beyond"]:
                text = f"{text} ▸" if right else f"◂ {text}"
            mark = {"type": "text", "fontSize": WORD, "align": "right" if right else "left"}
            place = {"y": {"value": -7 - 12 * i}, "tooltip": {"value": None}}
            mark |= {"text": text, "color": INK, "clip": False}
            found.append({"data": {"values": [{"x": at}]}, "mark": mark, "encoding": place})
        return found

    def _placed(self) -> pd.DataFrame:
        """The baselines, and which ones lie so far off that they are named at the edge alone."""
        numbers = self._numbers()
        span = FAR * ((max(numbers) - min(numbers)) or 0.01)
        x = self.lines["x"].astype(float)
        return self.lines.assign(beyond=(x < min(numbers) - span) | (x > max(numbers) + span))

    def _numbers(self) -> list[float]:
        parts = [self.rows[name].astype(float) for name in ("x", "low", "high")]
        return [value for part in parts for value in part if math.isfinite(value)]

    def _tooltip(self) -> list[dict[str, Any]]:
        number = {"type": "quantitative", "format": ".4~g"}
        words = [{"field": name, "type": "nominal"} for name in ("series", "note")]
        titles = {"x": self.x.title, "low": "low", "high": "high"}
        return [*words, *({"field": name, "title": title} | number for name, title in titles.items())]

    def describe(self) -> str:
        rows = (
            f"{r.series} {r.x:.4g}{'' if math.isnan(r.low) else f' [{r.low:.4g}, {r.high:.4g}]'}"
            for r in self.rows.itertuples()
        )
        lines = (f"{line.series} {line.x:.4g}" for line in self.lines.itertuples())
        baselines = f" Baselines: {', '.join(lines)}." if len(self.lines) else ""
        tied = ", ".join(self.rows.loc[self.rows["tied"].astype(bool), "series"])
        shaded = f" Not significantly different from the best: {tied}." if tied else ""
        return f"{self.title or 'Panel'}, {self.x.title}: {', '.join(rows)}.{baselines}{shaded}"
