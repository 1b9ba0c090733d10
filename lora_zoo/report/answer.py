"""The answer of a table in a sentence a task: the best, what is not significantly different, what would tell.

No mean stands without its interval and its number of runs. The comparisons are the table's own: paired, and
corrected for all pairs of a task's cells.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lora_zoo.analysis.columns import join_names
from lora_zoo.analysis.comparison import Cell, Cells
from lora_zoo.analysis.estimates import Difference
from lora_zoo.analysis.power import MOST, seeds_for
from lora_zoo.report.figures.axes import value_axis
from lora_zoo.report.layout import Layout, families
from lora_zoo.report.titles import is_baseline

NAMED = 4
"""Contenders whose names still read as a sentence."""


def answers(layout: Layout) -> list[str]:
    """A sentence for each task and model of the table that has a value; where a baseline leads, one more."""
    return [sentence for _, part in families(layout.found) for sentence in _sentences(layout, part)]


def _sentences(layout: Layout, part: Cells) -> Iterator[str]:
    cells = [cell for cell in part.cells if cell.n]
    if not cells:
        return
    yield f"{_where(layout, part)}: {'; '.join(_clauses(layout, part))}."
    adapters = [cell for cell in cells if not is_baseline(layout.variant(cell))]
    if part.better and len(adapters) > 1 and part.best() not in adapters:
        alone = replace(part, cells=adapters)
        yield f"Among the {len(adapters)} adapters alone: {'; '.join(_clauses(layout, alone))}."


def _where(layout: Layout, part: Cells) -> str:
    """The task, the model where the table has several, and what was measured."""
    runs = layout.runs_of(part)
    tasks = sorted(runs["task"].dropna().unique())
    models = sorted(runs["model"].dropna().unique()) if "model" in part.by else []
    return f"{join_names([*tasks, *models], 3)}, {value_axis(runs, part.value).label}"


def _clauses(layout: Layout, part: Cells) -> Iterator[str]:
    cells = [cell for cell in part.cells if cell.n]
    if len(cells) == 1 or not part.better:
        every = [f"{layout.name(cell)} {layout.text(cell)}" for cell in cells]
        yield join_names(every, NAMED)
        if not part.better:
            yield "nothing declares whether more of it is better, so that there is no best"
        return
    best = part.best()
    level = [cell for cell in cells if math.isclose(cell.mean, best.mean, rel_tol=1e-12)]
    if not layout.learned(best):
        yield f"the best mean is {layout.text(best)}, and no run behind it learned anything"
        return
    if len(level) > 1:
        yield f"{_names(layout, level)} share the best mean, {layout.text(best)}"
    else:
        yield f"{layout.name(best)} {layout.text(best)}"
    yield from _others(layout, part, cells, best)


def _others(layout: Layout, part: Cells, cells: Sequence[Cell], best: Cell) -> Iterator[str]:
    """The number of others that are not significantly different from the best, and what would tell them."""
    others, against = len(cells) - 1, part.against_best()
    tied = [cell for cell in part.tied() if cell is not best and cell.n]
    if not tied:
        all_of = {1: "the other one", 2: "both others"}.get(others, f"all {others} others")
        yield f"significantly better than {all_of}"
        return
    who = f" ({_names(layout, tied)})" if len(tied) < others and len(tied) <= NAMED else ""
    count = f"{len(tied)} of {others} others {'is' if len(tied) == 1 else 'are'}"
    yield f"{'the other one is' if others == 1 else count} not significantly different{who}"
    sign = 1 if part.better == "higher" else -1
    nearest = max(tied, key=lambda cell: sign * cell.mean)
    if needed := _seeds(best, nearest, against[nearest]):
        them = "them apart" if others == 1 else f"it from the nearest, {layout.name(nearest)},"
        yield f"telling {them} takes {needed}"


def _seeds(best: Cell, nearest: Cell, difference: Difference) -> str:
    """The seeds that show a difference as large as the one that was seen; "" where none is known."""
    if difference.n < 2:
        return "more than one seed of each"
    gap, sd = abs(difference.estimate), float((best.values - nearest.values).std(ddof=1))
    seeds = seeds_for(gap, sd, 1 - difference.level) if gap else math.nan
    if np.isnan(seeds):
        return ""
    return f"more than {MOST:,} seeds" if np.isinf(seeds) else f"about {_rounded(seeds):,} seeds"


def _rounded(seeds: float) -> int:
    """Two digits: a pilot of few seeds knows no more."""
    return int(round(seeds, 1 - math.floor(math.log10(seeds))) if seeds >= 100 else seeds)


def _names(layout: Layout, cells: Sequence[Cell]) -> str:
    *most, last = [layout.name(cell) for cell in cells]
    return f"{', '.join(most)} and {last}" if 1 <= len(most) < NAMED else join_names([*most, last], NAMED)
