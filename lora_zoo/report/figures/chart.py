"""A figure: a message, a caption and panels, as Vega-Lite specifications.

The same specification is drawn by the page's script, and by vl-convert as SVG, PDF and PNG.
"""

import base64
import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import vl_convert

from lora_zoo.report.figures.panels import HIDDEN, Panel
from lora_zoo.report.figures.style import CONFIG, SeriesStyle, Styles

VEGA_LITE = "6.1"
SIDE_BY_SIDE = 3  # panels
LETTER = 8  # pixels, of a title
_ID = re.compile(r'(id="|url\(#)((?:clip|gradient_)\d+)')  # which Vega counts over a process
WIDEST_NAME = 150  # pixels, of an entry of the legend


@dataclass(frozen=True)
class Chart:
    """`title` is the figure's one message, `caption` how it was made, `styles` those of its series."""

    title: str
    caption: str
    panels: Sequence[Panel]
    styles: Styles = field(default_factory=dict)

    @cached_property
    def alt(self) -> str:
        """The figure in words, for those who cannot see it."""
        return " ".join([f"{self.title}.", *(panel.describe() for panel in self.panels)])

    @property
    def legend(self) -> list[tuple[str, SeriesStyle, str]]:
        """Name, style and marks of each series, in order."""
        marks: dict[str, str] = {}
        for panel in self.panels:
            marks |= {name: panel.shows for name in panel.names if name not in marks}
        return [(name, self.styles[name], shows) for name, shows in marks.items()]

    @property
    def spec(self) -> dict[str, Any]:
        """The figure for print, in pixels of 1/96 inch; the caption is left to the paper's text."""
        columns = min(SIDE_BY_SIDE, len(self.panels))
        width = max(320, columns * max((panel.size[0] + 60 for panel in self.panels), default=0))
        names = [name for name, _, _ in self.legend]
        shown = {"orient": "bottom", "title": None, "columns": max(1, int(width // WIDEST_NAME))}
        return {
            "$schema": f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE}.json",
            "description": self.alt,
            "title": {
                **{"text": textwrap.wrap(self.title, int(width / LETTER)), "fontWeight": "bold"},
                **{"fontSize": 13, "frame": "bounds", "offset": 10},
            },
            "params": [HIDDEN],
            "config": CONFIG,
            "concat": [panel.sized(self.styles, shown if len(names) > 1 else None) for panel in self.panels],
            "columns": SIDE_BY_SIDE,
            "resolve": {"scale": {"color": "shared" if names else "independent"}},
        }

    def interactive(self) -> list[dict[str, Any]]:
        """One specification a panel, as wide as its box, to be drawn with `CONFIG`."""
        return [panel.responsive(self.styles) for panel in self.panels]

    @cached_property
    def svg(self) -> str:
        drawn = str(vl_convert.vegalite_to_svg(self.spec, vl_version=VEGA_LITE))
        ids = list(dict.fromkeys(name for _, name in _ID.findall(drawn)))
        return _ID.sub(lambda found: f"{found[1]}part{ids.index(found[2])}", drawn)

    def save(self, stem: str | Path, kinds: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
        """Write `stem`.svg, .pdf and .png (300 dpi); the same chart gives the same SVG and PNG."""
        points = re.sub(r'(width|height)="([\d.]+)"', _in_points, self.svg, count=2)
        drawn = {
            "svg": self.svg.encode,
            "pdf": lambda: vl_convert.svg_to_pdf(points),
            "png": lambda: vl_convert.svg_to_png(points, ppi=300),
        }
        paths = [Path(f"{stem}.{kind}") for kind in kinds]
        for path, kind in zip(paths, kinds, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawn[kind]())
        return paths

    def _repr_html_(self) -> str:
        """The picture, its words and the caption, where a notebook shows a cell's last value."""
        picture = f'<img src="{self.data_uri}" alt="{html.escape(self.alt)}">'
        return f"<figure>{picture}<figcaption>{html.escape(self.caption)}</figcaption></figure>"

    @property
    def data_uri(self) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


def _in_points(size: re.Match[str]) -> str:
    return f'{size[1]}="{float(size[2]) * 0.75:g}"'
