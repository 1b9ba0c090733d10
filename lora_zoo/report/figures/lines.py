"""Panels of two numeric axes: curves with bands, marks with intervals, points, and those with a Pareto front.

Each may have baselines: what chance gives, or what is the most possible, drawn thin and grey behind the rest.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_zoo.report.figures.chart import Axis, Panel, Series, escaped, finite, plain, plotly_axes
from lora_zoo.report.figures.looks import Look, Looks, faint, joined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis

GREY, INK = "#808080", "#606060"  # of lines, and of the words beside them
FEW_TICKS = 12
FEW_LABELS = 12


@dataclass(frozen=True)
class Plane(Panel):
    """What the panels here share: series on a pair of axes."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    baselines: Sequence[Series] = field(default=(), kw_only=True)
    """Grey lines that bear their names themselves; the legend does not explain them."""

    @property
    def names(self) -> list[str]:
        return [series.name for series in self.series]

    def draw(self, axes: "Axes", looks: Looks) -> None:
        for axis, scale in ((self.x, axes.set_xscale), (self.y, axes.set_yscale)):
            if axis.log:
                scale("log")
        for series in self.series:
            self.draw_series(axes, series, looks[series.name])
        for base in self.baselines:
            axes.plot(base.x, base.y, color=GREY, linestyle=(0, (1, 1.5)), linewidth=1, zorder=0)
            beside: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(plain(base.name), (base.x[-1], base.y[-1]), color=INK, fontsize=6, **beside)
        for axis, ruler, values in ((self.x, axes.xaxis, "x"), (self.y, axes.yaxis, "y")):
            if axis.log and "tickvals" in self._log_ticks(values):
                _in_words(ruler)
        self.finish(axes)
        axes.set_xlabel(plain(self.x.title))
        axes.set_ylabel(plain(self.y.title))

    def finish(self, axes: "Axes") -> None:
        """What is drawn once all series are."""

    def plotly(self, looks: Looks) -> dict[str, Any]:
        data = [_base(base) for base in self.baselines]
        data += [trace for series in self.series for trace in self.traces(series, looks[series.name])]
        layout = plotly_axes(self.x, self.y)
        for name, axis, values in (("xaxis", self.x, "x"), ("yaxis", self.y, "y")):
            if axis.log:
                layout[name] |= _ticks(
                    [v for one in (*self.series, *self.baselines) for v in getattr(one, values)]
                )
        return {"data": data, "layout": layout}

    def _log_ticks(self, values: str) -> dict[str, Any]:
        return _ticks([v for one in (*self.series, *self.baselines) for v in getattr(one, values)])

    @abstractmethod
    def draw_series(self, axes: "Axes", series: Series, look: Look) -> None: ...

    @abstractmethod
    def traces(self, series: Series, look: Look) -> list[dict[str, Any]]: ...

    def said(self) -> str:
        ends = (f"{s.name}: {_span(s)}" for s in (*self.series, *self.baselines))
        return f"{self.title or 'Panel'}, {self.y.title} against {self.x.title}: {'; '.join(ends)}."


def _base(base: Series) -> dict[str, Any]:
    """A baseline's trace, its name above its last point."""
    return {
        "type": "scatter",
        "mode": "lines+text",
        "name": escaped(base.name),
        "x": finite(base.x),
        "y": finite(base.y),
        "text": [*[""] * (len(base.x) - 1), escaped(base.name)],
        "textposition": "top left",
        "line": {"color": GREY, "width": 1, "dash": "dot"},
    }


def _ticks(values: Sequence[float]) -> dict[str, Any]:
    """Ticks of a logarithmic axis: the decades, and 2 and 5 of each where there are few."""
    positive = [v for v in values if math.isfinite(v) and v > 0]
    if not positive or max(positive) / min(positive) > 100:
        return {"dtick": 1}
    decades = range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _in_words(ruler: "XAxis | YAxis") -> None:
    """1, 2 and 5 of each decade as plain numbers, where powers of ten would be too few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ruler.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ruler.set_major_formatter("{x:g}")
    ruler.set_minor_formatter(NullFormatter())


def _span(series: Series) -> str:
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    if not points:
        return "no values"
    if len(points) == 1:
        return f"{points[0][1]:.4g} at {points[0][0]:.4g}"
    (x, y), (x_end, y_end) = points[0], points[-1]
    return f"from {y:.4g} at {x:.4g} to {y_end:.4g} at {x_end:.4g}"


def _line(series: Series, look: Look, mode: str) -> dict[str, Any]:
    trace = {
        "type": "scatter",
        "mode": mode,
        "name": escaped(series.name),
        "legendgroup": series.name,
        "x": finite(series.x),
        "y": finite(series.y),
        "line": {"color": look.colour, "dash": look.line[1], "width": 2},
        "marker": {"color": look.colour, "symbol": look.point[1], "size": 8},
    }
    return trace | ({"text": [escaped(text) for text in series.said]} if series.said else {})


def _arms(series: Series) -> tuple[list[float], list[float]]:
    """Lengths of the error bars below and above; nothing where there is no interval."""
    if not series.low:
        return [0.0] * len(series.y), [0.0] * len(series.y)
    below = [y - low if math.isfinite(low) else 0.0 for y, low in zip(series.y, series.low, strict=True)]
    above = [high - y if math.isfinite(high) else 0.0 for y, high in zip(series.y, series.high, strict=True)]
    return below, above


@final
@dataclass(frozen=True)
class Bands(Plane):
    """Curves, each with a band from `low` to `high`."""

    mode: ClassVar[str] = "lines"

    def draw_series(self, axes: "Axes", series: Series, look: Look) -> None:
        if series.low:
            axes.fill_between(series.x, series.low, series.high, color=look.colour, alpha=0.18, linewidth=0)
        lone = look.point[0] if len(series.x) == 1 else None
        axes.plot(series.x, series.y, color=look.colour, linestyle=look.line[0], marker=lone)

    def traces(self, series: Series, look: Look) -> list[dict[str, Any]]:
        curve = _line(series, look, self.mode if len(series.x) > 1 else "markers")
        if not series.low:
            return [curve]
        x, low, high = (finite(values) for values in (series.x, series.low, series.high))
        band = {
            "type": "scatter",
            "mode": "lines",
            "legendgroup": series.name,
            "x": [*x, *x[::-1]],
            "y": [*high, *low[::-1]],
            "fill": "toself",
            "fillcolor": faint(look.colour),
            "line": {"width": 0},
            "hoverinfo": "skip",
        }
        return [band, curve]


@final
@dataclass(frozen=True)
class Marks(Plane):
    """Measured points joined by thin lines, with their intervals; `x` takes few values, each a tick."""

    mode: ClassVar[str] = "lines+markers"

    def draw_series(self, axes: "Axes", series: Series, look: Look) -> None:
        marks: dict[str, Any] = {
            "color": look.colour,
            "linestyle": look.line[0],
            "marker": look.point[0],
            "capsize": 2,
        }
        axes.errorbar(series.x, series.y, yerr=_arms(series), **marks)

    def finish(self, axes: "Axes") -> None:
        if ticks := self._ticks():
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)

    def _ticks(self) -> list[float]:
        ticks = sorted({float(x) for series in self.series for x in series.x})
        return ticks if len(ticks) <= FEW_TICKS else []

    def traces(self, series: Series, look: Look) -> list[dict[str, Any]]:
        below, above = _arms(series)
        bars = {"type": "data", "symmetric": False, "array": finite(above), "arrayminus": finite(below)}
        return [_line(series, look, self.mode) | {"error_y": {**bars, "thickness": 1, "width": 4}}]

    def plotly(self, looks: Looks) -> dict[str, Any]:
        drawn = super().plotly(looks)
        if ticks := self._ticks():
            said = [f"{tick:g}" for tick in ticks]
            drawn["layout"]["xaxis"] |= {"tickmode": "array", "tickvals": ticks, "ticktext": said}
        return drawn


@final
@dataclass(frozen=True)
class Points(Plane):
    """Measured points with nothing between them."""

    mode: ClassVar[str] = "markers"

    def draw_series(self, axes: "Axes", series: Series, look: Look) -> None:
        marks: dict[str, Any] = {"color": look.colour, "marker": look.point[0], "markersize": 3}
        axes.plot(series.x, series.y, linestyle="none", alpha=0.8, **marks)

    def traces(self, series: Series, look: Look) -> list[dict[str, Any]]:
        return [_line(series, look, self.mode)]

    def said(self) -> str:
        counts = (
            f"{len(s.x)} points of {s.name}, y from {min(s.y):.4g} to {max(s.y):.4g}" for s in self.series
        )
        return f"{self.title or 'Panel'}, {self.y.title} against {self.x.title}: {'; '.join(counts)}."


@final
@dataclass(frozen=True)
class Front(Plane):
    """Points, and the staircase through those that none of the others beats on both axes.

    Less of x is better, and more of y where `sign` is 1, less of it where that is -1.
    """

    mode: ClassVar[str] = "markers"
    sign: int = 1

    stairs: Sequence[tuple[float, float]] = field(init=False)
    """The front's corners, from left to right."""

    def __post_init__(self) -> None:
        points = sorted(
            {(float(x), float(y)) for s in self.series for x, y in zip(s.x, s.y, strict=True)},
            key=lambda point: (point[0], -self.sign * point[1]),
        )
        front: list[tuple[float, float]] = []
        for x, y in points:
            if math.isfinite(x + y) and (not front or self.sign * (y - front[-1][1]) > 0):
                front.append((x, y))
        object.__setattr__(self, "stairs", front)

    def draw_series(self, axes: "Axes", series: Series, look: Look) -> None:
        marks: dict[str, Any] = {"color": look.colour, "linestyle": "none", "marker": look.point[0]}
        axes.errorbar(series.x, series.y, yerr=_arms(series), elinewidth=0.7, **marks)
        for x, y, text in zip(series.x, series.y, self._labels(series), strict=True):
            axes.annotate(plain(text), (x, y), (3, 3), textcoords="offset points", fontsize=6)

    def _labels(self, series: Series) -> Sequence[str]:
        """What stands beside the points: nothing where they are so many that it would overlap."""
        few = sum(len(one.x) for one in self.series) <= FEW_LABELS
        return series.said if few and series.said else [""] * len(series.x)

    def finish(self, axes: "Axes") -> None:
        x, y = zip(*self.stairs, strict=True) if self.stairs else ((), ())
        axes.step(x, y, where="post", color=GREY, linewidth=0.8, zorder=0)

    def traces(self, series: Series, look: Look) -> list[dict[str, Any]]:
        below, above = _arms(series)
        bars = {"type": "data", "symmetric": False, "array": finite(above), "arrayminus": finite(below)}
        labels = [escaped(text) for text in self._labels(series)]
        mode = {"mode": "markers+text", "text": labels, "textposition": "top right"} if any(labels) else {}
        names = [f"{escaped(series.name)} {escaped(said)}" for said in series.said or [""] * len(series.x)]
        hover = {"hovertext": names, "hoverinfo": "text+x+y"}
        point = _line(series, look, self.mode) | mode | hover
        return [point | {"error_y": {**bars, "thickness": 1, "width": 3}}]

    def plotly(self, looks: Looks) -> dict[str, Any]:
        drawn = super().plotly(looks)
        stairs = {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": finite([x for x, _ in self.stairs]),
            "y": finite([y for _, y in self.stairs]),
            "line": {"color": GREY, "width": 1, "shape": "hv"},
            "hoverinfo": "skip",
        }
        return drawn | {"data": [stairs, *drawn["data"]]}

    def said(self) -> str:
        best = [
            joined(s.name, said)
            for s in self.series
            for x, y, said in zip(s.x, s.y, s.said or [""] * len(s.x), strict=True)
            if (float(x), float(y)) in self.stairs
        ]
        return f"{super().said()} On the Pareto front: {', '.join(best) or 'none'}."


__all__ = ["Bands", "Front", "Marks", "Points"]
