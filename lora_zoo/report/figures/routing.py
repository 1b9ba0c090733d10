"""Routing of mixtures: the load of each expert, and how evenly a token's weights are spread."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Nothing, done, groups, in_order
from lora_zoo.report.figures.heat import Heat
from lora_zoo.report.figures.rows import by_layer

EVENNESS = "even"


def routing(table: pd.DataFrame, runs: pd.DataFrame, by: Sequence[str]) -> Chart:
    """Load by matrix and expert, a panel a setting of `runs`; means over its runs.

    `table` is the long frame of `lora_zoo.runs.routing`, of one split.
    """
    told = done(runs)
    told = told[told["run"].isin(table["run"])]
    if told.empty:
        raise Nothing("the results have no experts")
    parts = {group.name: _cells(table[table["run"].isin(group.runs["run"])]) for group in groups(told, by)}
    axes, colour = (Axis("expert"), Axis("role and layer")), Axis("load")
    return Chart(
        "Routing among experts",
        "Cells: mean over seeds of an expert's mean weight over the tokens. Last column (even): the mean"
        " entropy of a token's weights over that of even ones, 1 where all experts weigh the same. One colour"
        " scale for all panels.",
        [Heat(name, *axes, cells, colour, 0.0, 1.0, digits=2) for name, cells in parts.items()],
    )


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a `Heat`: matrices by role, then by layer; experts from 1, and the evenness."""
    known, layers, _ = by_layer(table)
    places, found = {key: part for key, part in known.groupby(["role", "layer"])}, []
    for role, layer in sorted(places, key=lambda place: (in_order(place[0]), layers.index(place[1]))):
        part = places[role, layer]
        load, n = part.groupby("expert")["load"].mean(), part["run"].nunique()
        most = np.log(len(load))
        even = float(part["entropy"].mean() / most) if most else 1.0
        values = {"column": [*(str(e + 1) for e in load.index), EVENNESS], "value": [*load, even]}
        found.append(pd.DataFrame({"row": f"{role} {layer}", **values, "note": f"n = {n}"}))
    return pd.concat(found, ignore_index=True)
