"""The first figure of a report: the cells of its table from best to worst, with baselines and ties."""

from collections.abc import Iterator

import pandas as pd

from lora_zoo.analysis.comparison import Cells
from lora_zoo.report.figure_list import Views
from lora_zoo.report.figures.axes import value_axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.dots import Dots
from lora_zoo.report.layout import Layout, families
from lora_zoo.report.titles import is_baseline, title_of

MOST = 30
"""Rows that fit a screen; more are a view of their own."""
CAPTION = (
    "Dots: means over seeds; lines: 95 % intervals, none for a single seed; dashed: baselines. {0}. "
    "Intervals that overlap may still differ: seeds are paired."
)
SHADED = "Shaded: the best and what is not significantly different from it"


def ranking(layout: Layout) -> Views | None:
    """A panel a task; the best rows first and all of them as a second view. None for less than two cells."""
    parts = [(name, part, _rows(layout, part)) for name, part in families(layout.found)]
    parts = [(name, part, rows) for name, part, rows in parts if len(rows) > 1]
    if not parts:
        return None
    most = max(len(rows) for _, _, rows in parts)
    sizes = {f"all {most}": most} if most <= MOST else {f"the first {MOST}": MOST, f"all {most}": most}
    charts = {name: _chart(layout, parts, size) for name, size in sizes.items()}
    return Views("The answer", "rows", charts)


def _chart(layout: Layout, parts: list[tuple[tuple[str, ...], Cells, pd.DataFrame]], most: int) -> Chart:
    panels = []
    for name, part, rows in parts:
        runs = layout.runs_of(part)
        lines = pd.DataFrame(_baselines(layout, part, runs), columns=["series", "x"])
        axis = value_axis(runs, part.value)
        panels.append(Dots(", ".join(name), axis, axis, rows.head(most), lines=lines))
    shaded = SHADED if layout.found.better else "Nothing declares whether more of it is better"
    return Chart("From best to worst", CAPTION.format(shaded), panels)


def _rows(layout: Layout, part: Cells) -> pd.DataFrame:
    cells = [cell for cell in part.cells if cell.n]
    sign = 1 if part.better == "lower" else -1
    cells.sort(key=lambda cell: sign * cell.mean)
    tied = part.tied() if part.better and cells and layout.learned(cells[0]) else []
    rows = [(layout.name(c), c.mean, c.interval.low, c.interval.high, f"n = {c.n}", c in tied) for c in cells]
    return pd.DataFrame(rows, columns=["series", "x", "low", "high", "note", "tied"])


def _baselines(layout: Layout, part: Cells, runs: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """The untrained model, the commonest class, and the variants that adapters are measured against."""
    for column, name in (
        (f"zero_shot_{part.value}", "before training"),
        (f"majority_{part.value}", "commonest class"),
    ):
        if column in runs and runs[column].notna().any():
            yield name, float(runs[column].median())
    cells = [(layout.variant(cell), cell) for cell in part.cells if cell.n]
    found = [(variant, cell) for variant, cell in cells if is_baseline(variant)]
    if len(found) < len(cells) and len({variant for variant, _ in found}) == len(found):
        yield from ((title_of(variant), cell.mean) for variant, cell in found)
