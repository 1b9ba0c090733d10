"""Figures: Okabe and Ito's colours, which colour-blind people can tell apart, and axes with units."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_zoo.benchmark.report import Curve

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKERS = "osD^vPX*"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


def draw(curve: "Curve", path: Path) -> bool:
    """Draw `curve` to `path`, an SVG. False where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "lora_zoo", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys(row["panel"] for row in curve.rows))
    figure, axes = plt.subplots(len(panels), 1, figsize=(8, 2.6 * len(panels) + 0.6), squeeze=False)
    groups = list(dict.fromkeys(row[curve.group] for row in curve.rows))
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        rows = [row for row in curve.rows if row["panel"] == panel]
        (_lines if _numeric(curve, rows) else _bars)(axis, curve, rows, groups)
        if curve.level is not None:
            axis.axhline(curve.level, color="#666666", linewidth=0.8, linestyle="--")
        if curve.logarithmic:
            axis.set_yscale("log")
        axis.set_title(str(panel), loc="left")
        axis.set_ylabel(curve.y_label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(curve.x_label)
    axes[0, 0].legend(frameon=False, ncols=min(4, len(groups)), loc="lower right", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Title": curve.title})
    plt.close(figure)
    return True


def _numeric(curve: "Curve", rows: Sequence[dict[str, Any]]) -> bool:
    return all(isinstance(row[curve.x], int | float) for row in rows)


def _bars(axis: Any, curve: "Curve", rows: Sequence[dict[str, Any]], groups: Sequence[Any]) -> None:
    names = list(dict.fromkeys(row[curve.x] for row in rows))
    width = 0.8 / len(groups)
    for number, group in enumerate(groups):
        own = [row for row in rows if row[curve.group] == group]
        at = [names.index(row[curve.x]) + (number - (len(groups) - 1) / 2) * width for row in own]
        axis.bar(
            at,
            [row["y"] for row in own],
            width,
            yerr=_spread(own),
            label=group,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            error_kw={"linewidth": 0.8},
        )
    axis.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0)


def _lines(axis: Any, curve: "Curve", rows: Sequence[dict[str, Any]], groups: Sequence[Any]) -> None:
    for number, group in enumerate(groups):
        own = sorted((row for row in rows if row[curve.group] == group), key=lambda row: row[curve.x])
        axis.errorbar(
            [row[curve.x] for row in own],
            [row["y"] for row in own],
            yerr=_spread(own),
            label=group,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.2,
        )
    ticks = sorted({row[curve.x] for row in rows})
    if ticks and ticks[0] > 0:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _spread(rows: Sequence[dict[str, Any]]) -> list[list[float]] | None:
    """Quartiles as error bars, where a row has them."""
    if not rows or "y_low" not in rows[0]:
        return None
    return [[row["y"] - row["y_low"] for row in rows], [row["y_high"] - row["y"] for row in rows]]
