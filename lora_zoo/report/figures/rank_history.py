"""Ranks of matrices over the training, where methods and programs change them."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from lora_zoo.report.figures.axes import Axis, axis_of
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Nothing, done, groups, in_order
from lora_zoo.report.figures.heat import Heat
from lora_zoo.report.figures.rows import by_layer

COLUMNS = 60  # of a panel, at most, beside the first


def rank_history(changes: pd.DataFrame, runs: pd.DataFrame, by: Sequence[str]) -> Chart:
    """Rank by matrix and step, a panel a setting of `runs`; means over its runs.

    `changes` is the long frame of `lora_zoo.runs.ranks`.
    """
    told = done(runs)
    told = told[told["run"].isin(changes["run"])]
    if told.empty:
        raise Nothing("the results have no ranks that change")
    parts = {
        group.name: _cells(changes[changes["run"].isin(group.runs["run"])], int(group.runs["steps"].max()))
        for group in groups(told, by)
    }
    axes, colour = (axis_of("step"), Axis("role and layer")), Axis("rank")
    most = max(float(cells["value"].max()) for cells in parts.values())
    return Chart(
        "Rank of each matrix over the training",
        "Cells: mean over seeds of the components that a matrix has after so many steps; of a program, of all"
        " its stages together. One colour scale for all panels.",
        [Heat(name, *axes, cells, colour, 0.0, most) for name, cells in parts.items()],
    )


def _cells(changes: pd.DataFrame, last: int) -> pd.DataFrame:
    """Rows of a `Heat`: matrices by role, then by layer; the means over runs of their ranks at even steps."""
    table, layers, _ = by_layer(changes)
    at, found = even_steps(last), []
    places = {key: part for key, part in table.groupby(["role", "layer"])}
    for role, layer in sorted(places, key=lambda place: (in_order(place[0]), layers.index(place[1]))):
        own = [_held(part, at) for _, part in places[role, layer].groupby(["run", "name"])]
        n = places[role, layer]["run"].nunique()
        values = {"column": list(map(str, at)), "value": np.mean(own, axis=0), "note": f"n = {n}"}
        found.append(pd.DataFrame({"row": f"{role} {layer}", **values}))
    return pd.concat(found, ignore_index=True)


def _held(changes: pd.DataFrame, at: Iterable[int]) -> np.ndarray:
    """The rank of one matrix of one run at these steps; 0 before it is there."""
    steps, ranks = changes["step"].to_numpy(dtype=float), changes["rank"].to_numpy(dtype=float)
    return np.append(0.0, ranks)[np.searchsorted(steps, list(at), side="right")]


def even_steps(last: int) -> list[int]:
    """0, w, 2 w, … and `last`, where w is 1, 2 or 5 times a power of ten."""
    sizes = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    width = next(size for size in sizes if last <= COLUMNS * size)
    return [*range(0, last, width), last]
