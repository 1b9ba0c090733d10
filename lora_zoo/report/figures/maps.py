"""Heat maps: outcomes on a grid of two settings, ranks of ΔW and how they agree, overlaps of subspaces."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lora_zoo.analysis.agreement import rank_agreement, rank_map
from lora_zoo.report.figures.axes import Axis, axis_of, value_axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Nothing, done, groups, in_order
from lora_zoo.report.figures.heat import Heat, unstacked
from lora_zoo.report.figures.rows import by_layer
from lora_zoo.report.titles import written

RANKS = {
    "effective_rank": Axis("effective rank of ΔW"),
    "numerical_rank": Axis("numerical rank of ΔW"),
}


def grid(runs: pd.DataFrame, rows: str, columns: str, by: Sequence[str], *, value: str = "test") -> Chart:
    """Means of `value` on the grid of two settings, one panel for each task and other setting in `by`."""
    finished = done(runs, value)
    measured = done(finished, rows, columns)
    means = finished.groupby([*{rows, columns, "task", *by}], dropna=False)[value].mean()
    others = ["task", *(axis for axis in by if axis not in (rows, columns, "task"))]
    ends, colour = (float(means.min()), float(means.max())), value_axis(finished, value)
    axes = axis_of(columns), axis_of(rows)
    panels = [
        Heat(panel.name, *axes, _cells(panel.runs, rows, columns, value), colour, *ends)
        for panel in groups(measured, others)
    ]
    title = f"{colour.label.capitalize()} by {axes[1].label} and {axes[0].label}"
    caption = "Cells: mean over seeds; empty where nothing was run. One colour scale for all panels."
    return Chart(title, caption, panels)


def _cells(runs: pd.DataFrame, rows: str, columns: str, value: str) -> pd.DataFrame:
    down, along = (sorted(runs[axis].unique(), key=in_order) for axis in (rows, columns))
    parts = {key: part[value].astype(float) for key, part in runs.groupby([rows, columns])}
    found = [
        {
            "row": written(rows, _plain(r)),
            "column": written(columns, _plain(c)),
            "value": part.mean(),
            "note": f"n = {len(part)}",
        }
        for r in down
        for c in along
        for part in [parts.get((r, c), pd.Series(dtype=float))]
    ]
    return pd.DataFrame(found)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def layer_ranks(updates: pd.DataFrame, title: str = "") -> Chart:
    """A grid of roles x layers for each measure, means over the runs in `updates`.

    `updates` is the long frame of `lora_zoo.runs.updates`, of the runs of one group.
    """
    present = [m for m in RANKS if m in updates and updates[m].notna().any()]
    if not present:
        raise Nothing(f"the results have no {' or '.join(RANKS)} of any matrix")
    table, layers, over = by_layer(updates)
    panels = []
    for measure in present:
        means = table.pivot_table(measure, "role", "layer", sort=False)
        means = means.loc[sorted(means.index, key=in_order), [layer for layer in layers if layer in means]]
        ends = float(np.nanmin(means)), float(np.nanmax(means))
        axes = Axis("layer"), Axis("role")
        panels.append(Heat(RANKS[measure].title, *axes, unstacked(means), RANKS[measure], *ends))
    what = " and ".join(RANKS[m].label.removesuffix(" of ΔW") for m in present)
    return Chart(
        f"{what.capitalize()} of ΔW by layer and role{f': {title}' if title else ''}",
        f"Cells: mean over {over}. Effective rank: exp of σ's entropy (Roy & Vetterli 2007);"
        " numerical rank: how many of the recorded σ (64 at most) are above 1e-6 of the first.",
        panels,
    )


def agreement(runs: pd.DataFrame, by: Sequence[str]) -> Chart:
    """Kendall's τ between the ranks that settings leave to the same matrices, a panel a task."""
    panels = []
    for task in groups(done(runs), ["task"]):
        own = groups(task.runs, [axis for axis in by if axis != "task"])
        parts = [rank_map(group.runs, ["variant"]).assign(method=group.name) for group in own]
        try:
            found = rank_agreement(pd.concat(parts)).dropna(subset=["tau"])
        except ValueError as twice:
            raise Nothing(str(twice)) from twice
        sides = [found, found[found["a"] != found["b"]].rename(columns={"a": "b", "b": "a"})]
        both = pd.concat(sides).rename(columns={"a": "row", "b": "column", "tau": "value"})
        order = [group.name for group in own]
        both = both.sort_values(["row", "column"], key=lambda names: names.map(order.index))
        if both["row"].nunique() > 1:
            cells = both.assign(note="n = " + both["n"].astype(str))[["row", "column", "value", "note"]]
            panels.append(
                Heat(task.name, Axis("setting"), Axis("other setting"), cells, Axis("τ"), -1.0, 1.0, digits=2)
            )
    if not panels:
        raise Nothing("no two settings leave ranks that differ from matrix to matrix")
    caption = (
        "Cells: Kendall's τ-b over matrices, mean over seeds; the diagonal over pairs of seeds: how well a "
        "setting agrees with itself. Ranks: numerical ranks of ΔW; a matrix without ΔW has rank 0."
    )
    return Chart("Agreement of the ranks that are left", caption, panels)


def subspaces(
    similarities: Mapping[str, pd.DataFrame],
    title: str = "Overlap of subspaces",
    dimension: int | None = None,
) -> Chart:
    """φ(i, j) in 0..1 of the first i and the first j directions: a panel a title, index i down, columns j.

    With the `dimension` of the space that they lie in, the last panel is what random directions have.
    """
    if not similarities:
        raise Nothing("no subspaces were compared")
    tables = dict(similarities)
    if dimension:
        largest = max(tables.values(), key=lambda table: table.size)
        ij = np.maximum.outer(largest.index.to_numpy(), largest.columns.to_numpy())
        tables[f"random, expected: max(i, j) / {dimension}"] = largest.mask(largest.notna(), ij / dimension)
    axes = Axis("first j directions"), Axis("first i directions")
    panels = [
        Heat(name, *axes, unstacked(table), Axis("φ(i, j)"), 0.0, 1.0, digits=2)
        for name, table in tables.items()
    ]
    caption = "φ = 1: the smaller subspace lies within the other; 0: they are orthogonal (LoRA, section 7.2)."
    return Chart(title, caption, panels)
