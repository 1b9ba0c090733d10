"""Colours, dashes and markers that colour-blind people, grey printers and dark screens keep apart.

The colours are Okabe and Ito's without yellow and black, which vanish on white and on dark ground.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#808080")
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"), ((0, (8, 3)), "longdash"))
MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("D", "diamond"),
    ("^", "triangle-up"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
    ("*", "star"),
)
SCALE = "cividis"  # perceptually even, and the same to all three kinds of colour blindness


class Look(NamedTuple):
    """How one series is drawn; `dash` and `marker` index matplotlib's and plotly's words for the same."""

    colour: str
    dash: int = 0
    marker: int = 0

    @property
    def line(self) -> tuple[object, str]:
        return DASHES[self.dash % len(DASHES)]

    @property
    def point(self) -> tuple[str, str]:
        return MARKERS[self.marker % len(MARKERS)]


def kinds(names: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """Looks of cells (group, member) by "group · member": a colour a group, a dash and a marker a member."""
    cells = list(dict.fromkeys(names))
    groups = list(dict.fromkeys(group for group, _ in cells))
    members = list(dict.fromkeys(member for _, member in cells))
    looks = {}
    for group, member in cells:
        g, m = groups.index(group), members.index(member)
        marker = m if len(members) > 1 else g
        looks[joined(group, member)] = Look(COLOURS[g % len(COLOURS)], m + g // len(COLOURS), marker)
    return looks


def joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def ordered(names: Sequence[str]) -> dict[str, Look]:
    """Looks of things that have an order, such as layers: from dark to bright."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    last = max(1, len(names) - 1)
    return {name: Look(to_hex(colormaps[SCALE](0.1 + 0.75 * i / last)), i, i) for i, name in enumerate(names)}


def faint(colour: str, share: float = 0.18) -> str:
    """`colour` as CSS of the given opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share:g})"


Looks = Mapping[str, Look]
__all__ = ["SCALE", "Look", "Looks", "faint", "joined", "kinds", "ordered"]
