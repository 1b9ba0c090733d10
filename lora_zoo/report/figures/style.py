"""Colours, dashes and markers that colour-blind people, grey printers and dark screens keep apart.

The colours are Okabe and Ito's without yellow and black, which vanish on white and on dark ground.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#808080")
ORDERED = ("#00224E", "#35456C", "#575D6D", "#7D7C78", "#A59C74", "#C9B35B", "#E3C83F")  # of cividis
DASHES = ((1, 0), (6, 3), (2, 2), (6, 2, 2, 2), (9, 3))
MARKERS = (
    "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "M-.85,-.85H.85V.85H-.85Z",
    "M0,-1.2L1.2,0L0,1.2L-1.2,0Z",
    "M0,-1.1L1.1,.9H-1.1Z",
    "M0,1.1L1.1,-.9H-1.1Z",
    "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
    "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
    "M0,-1.2L.3,-.4H1.2L.5,.15L.75,1L0,.5L-.75,1L-.5,.15L-1.2,-.4H-.3Z",
)
SCHEME = "cividis"  # perceptually even, and the same to all three kinds of colour blindness
GREY = "#808080"
INK = "currentColor"  # the page's ink, light on dark; black in a file
FONT = "DejaVu Sans, Verdana, sans-serif"  # has all of − ± ≈ ‖ σᵢ φ
WORD = 10  # pixels, the size of words among marks
CONFIG: dict[str, Any] = {
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK, "gridColor": INK},
        **{"gridOpacity": 0.12, "titleFontWeight": "normal", "labelFontSize": 10.5, "titleFontSize": 11.5},
        **{
            "labelLimit": 160,
            "labelOverlap": "greedy",
            "titleLimit": 400,
            "labelFlush": False,
            "labelSeparation": 4,
        },
    },
    "title": {"color": INK, "anchor": "start", "fontSize": 11.5, "fontWeight": "normal", "frame": "group"},
    "legend": {
        **{"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 400},
        **{"gradientThickness": 9, "symbolOpacity": 1, "symbolSize": 70},
    },
    "mark": {"aria": False},  # the whole is described in words
    "concat": {"spacing": 18},
}


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
