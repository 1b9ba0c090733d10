"""Colours, dashes and markers that colour-blind people, grey printers and dark screens keep apart.

They lie in style.json, with Vega-Lite's configuration and layers of marks. The colours are Okabe and Ito's
without yellow and black, which vanish on white and on dark ground; `ordered` are of cividis; a marker is an
outline of radius 1. The ink is the page's, light on dark, and black in a file; DejaVu Sans has all of
− ± ≈ ‖ σᵢ φ.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

_DATA = json.loads((files("lora_zoo.report.figures") / "style.json").read_text(encoding="utf-8"))
COLOURS: list[str] = _DATA["colours"]
ORDERED: list[str] = _DATA["ordered"]
DASHES: list[tuple[int, ...]] = [tuple(dash) for dash in _DATA["dashes"]]
MARKERS: list[str] = _DATA["markers"]
CONFIG: dict[str, Any] = _DATA["config"]
LAYERS: dict[str, dict[str, Any]] = _DATA["layers"]
SCHEME = "cividis"  # perceptually even, and the same to all three kinds of colour blindness
GREY = "#808080"
INK = "currentColor"
WORD = 10  # pixels, the size of words among marks


class SeriesStyle(NamedTuple):
    """The look of one series: a line's dash pattern, a point's outline as an SVG path of radius 1."""

    colour: str
    dash: tuple[int, ...] = DASHES[0]
    marker: str = MARKERS[0]


def style(colour: str, dash: int, marker: int) -> SeriesStyle:
    return SeriesStyle(colour, DASHES[dash % len(DASHES)], MARKERS[marker % len(MARKERS)])


def series_styles(names: Iterable[tuple[str, str]]) -> dict[str, SeriesStyle]:
    """Styles of (group, member) by "group · member": a colour a group, a dash and a marker a member."""
    pairs = list(dict.fromkeys(names))
    groups = list(dict.fromkeys(group for group, _ in pairs))
    members = list(dict.fromkeys(member for _, member in pairs))
    styles = {}
    for group, member in pairs:
        g, m = groups.index(group), members.index(member)
        dash, marker = (m + g // len(COLOURS), m) if len(members) > 1 else (g, g)
        styles[joined(group, member)] = style(COLOURS[g % len(COLOURS)], dash, marker)
    return styles


def ordered_styles(names: Sequence[str]) -> dict[str, SeriesStyle]:
    """Styles of things that have an order, such as layers: from dark to bright."""
    last = max(1, len(names) - 1)
    return {name: style(_between(i / last), i, i) for i, name in enumerate(names)}


def _between(share: float) -> str:
    """The colour at `share` of the way along ORDERED."""
    along = share * (len(ORDERED) - 1)
    i = min(int(along), len(ORDERED) - 2)
    ends = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in ORDERED[i : i + 2]]
    return "#" + "".join(f"{round(a + (b - a) * (along - i)):02x}" for a, b in zip(*ends, strict=True))


def joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


Styles = Mapping[str, SeriesStyle]
