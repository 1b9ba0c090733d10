"""What a figure is: a message, a caption and panels, drawn by matplotlib for print and by plotly for screens.

A panel knows how to draw itself both ways from the same numbers, so the two cannot differ.
"""

import base64
import html
import io
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_zoo.report.figures.looks import Look, Looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph that goes into a PDF
STYLE = {
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "lora_zoo",
    "pdf.fonttype": 42,
}
WIDE = 3  # panels side by side
LETTER = 0.08  # inches of a figure's title, more than the mean
UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


class Nothing(ValueError):
    """The results do not hold what the figure shows; the message says what is missing."""


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
class Series:
    """Points of one name; `low` and `high` bound an interval, NaN where there is none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    said: Sequence[str] = ()
    """One label a point, shown beside it or on hovering."""


class Panel(ABC):
    """One pair of axes."""

    title: str

    @property
    def names(self) -> list[str]:
        """The names that the legend explains, in order."""
        return []

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches on paper."""
        return (2.6, 2.1)

    mode: ClassVar[str] = ""
    """What the legend shows of a series: "lines", "markers" or "lines+markers"."""

    @property
    def pixels(self) -> int:
        """Height on a screen."""
        return 320

    @abstractmethod
    def draw(self, axes: "Axes", looks: Looks) -> None:
        """Onto matplotlib's axes."""

    @abstractmethod
    def plotly(self, looks: Looks) -> dict[str, Any]:
        """As plotly's `data` and `layout`, without fonts, colours of the ground or margins."""

    @abstractmethod
    def said(self) -> str:
        """What is to be seen, in words, for those who cannot see it."""


@dataclass(frozen=True)
class Chart:
    """A figure. `title` is its one message, `caption` how it was made, `looks` those of its series' names."""

    title: str
    caption: str
    panels: Sequence[Panel]
    looks: Looks = field(default_factory=dict)

    @property
    def alt(self) -> str:
        return " ".join([f"{self.title}.", *(panel.said() for panel in self.panels)])

    @property
    def legend(self) -> list[tuple[str, Look, str]]:
        """Name, look and mode of each series, in order."""
        modes: dict[str, str] = {}
        for panel in self.panels:
            modes |= {name: panel.mode for name in panel.names if name not in modes}
        return [(name, self.looks[name], mode) for name, mode in modes.items()]

    def figure(self) -> "Figure":
        """The figure for print; the caption is left to the paper's text."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            columns = min(WIDE, len(self.panels))
            rows = math.ceil(len(self.panels) / columns)
            sizes = [panel.size for panel in self.panels]
            width = max(3.4, LETTER * len(self.title), columns * max(w for w, _ in sizes))
            lines = math.ceil(len(self.legend) / max(1, int(width / 1.6)))
            height = rows * max(h for _, h in sizes) + 0.17 * lines + 0.3
            figure = Figure(figsize=(width, height), layout="constrained")
            grid = figure.subplots(rows, columns, squeeze=False).flatten()
            for panel, axes in zip(self.panels, grid, strict=False):
                axes.set_title(panel.title)
                panel.draw(axes, self.looks)
            for axes in grid[len(self.panels) :]:
                axes.set_axis_off()
            figure.suptitle(self.title, x=0.01, ha="left", fontsize=9, fontweight="bold")
            if len(self.legend) > 1:
                handles = [_handle(*entry) for entry in self.legend]
                figure.legend(handles=handles, loc="outside lower left", ncols=max(1, int(width / 1.6)))
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not again for every format
        return figure

    def save(self, stem: str | Path, kinds: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
        """Write `stem`.svg, .pdf and .png (300 dpi); the same chart gives the same bytes."""
        import matplotlib

        paths = [Path(f"{stem}.{kind}") for kind in kinds]
        with matplotlib.rc_context(STYLE):
            for path, kind in zip(paths, kinds, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "svg":
                    path.write_bytes(self.svg)
                else:
                    self._drawn.savefig(path, dpi=300, metadata=UNDATED.get(kind))
        return paths

    @cached_property
    def _drawn(self) -> "Figure":
        return self.figure()

    @cached_property
    def svg(self) -> bytes:
        """The figure for print, to be embedded in a page."""
        import matplotlib

        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self._drawn.savefig(buffer, format="svg", metadata=UNDATED["svg"])
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """The figure and its caption, where a notebook shows a cell's last value."""
        picture = base64.b64encode(self.svg).decode()
        image = f'<img src="data:image/svg+xml;base64,{picture}" alt="{html.escape(self.alt)}">'
        return f"<figure>{image}<figcaption>{html.escape(self.caption)}</figcaption></figure>"

    def interactive(self) -> list[dict[str, Any]]:
        """One plotly figure a panel, as plain data: `plotly.graph_objects.Figure(chart.interactive()[0])`."""
        return [panel.plotly(self.looks) for panel in self.panels]


def _handle(name: str, look: Look, mode: str) -> Any:
    from matplotlib.lines import Line2D

    line = look.line[0] if "lines" in mode else "none"
    marker = look.point[0] if "markers" in mode else "none"
    return Line2D([], [], color=look.colour, linestyle=line, marker=marker, label=plain(name))


def plain(text: str) -> str:
    """`text` for matplotlib, which would read mathematics between dollar signs."""
    return text.replace("$", r"\$")


def plotly_axes(x: Axis, y: Axis, **more: Any) -> dict[str, Any]:
    """Plotly's layout of two axes."""
    return {"xaxis": _axis(x), "yaxis": _axis(y)} | more


def _axis(axis: Axis) -> dict[str, Any]:
    scale = {"type": "log", "exponentformat": "power"} if axis.log else {}
    return {"title": {"text": escaped(axis.title)}, "automargin": True, **scale}


def escaped(text: str) -> str:
    """`text` for plotly, which reads a few HTML tags in labels."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def finite(values: Sequence[float]) -> list[float | None]:
    """For JSON, which has no NaN; six digits are more than any plot shows."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


Charts = Mapping[str, Chart]
__all__ = [
    "Axis",
    "Chart",
    "Charts",
    "Nothing",
    "Panel",
    "Series",
    "escaped",
    "finite",
    "plain",
    "plotly_axes",
]
