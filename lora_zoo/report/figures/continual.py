"""Accuracy matrices of sequences of tasks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lora_zoo.analysis.continual import matrices
from lora_zoo.report.figures.axes import Axis, value_axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Nothing, done, groups
from lora_zoo.report.figures.heat import Heat, unstacked


def accuracy_matrix(runs: pd.DataFrame, by: Sequence[str], *, split: str = "test", metric: str = "") -> Chart:
    """The outcome of each task after each, a panel a setting of `runs`; means over its runs.

    `metric` is another value than the one that counts: "routing_accuracy", of methods that have one.

    Runs of a setting that learned the tasks in different orders have a panel for each order.
    """
    found = matrices(runs, split, metric) if "record" in runs else {}
    told = done(runs, split)
    told = told[told["run"].isin(found)]
    if told.empty:
        raise Nothing("no run learned a sequence of tasks that were judged apart")
    parts: dict[str, list[np.ndarray]] = {}
    tasks: dict[str, list[str]] = {}
    for group in groups(told, by):
        orders = list(dict.fromkeys(tuple(found[run].tasks) for run in group.runs["run"]))
        for number, order in enumerate(orders, start=1):
            name = group.name if len(orders) == 1 else f"{group.name}, order {number}"
            own = [found[run].a_TT for run in group.runs["run"] if tuple(found[run].tasks) == order]
            parts[name], tasks[name] = own, list(order)
    means = {name: np.mean(own, axis=0) for name, own in parts.items()}
    low, high = min(np.nanmin(a) for a in means.values()), max(np.nanmax(a) for a in means.values())
    value = Axis(metric.replace("_", " ")) if metric else value_axis(told, split)
    axes, colour = (Axis("task that is judged"), Axis("after learning")), value
    panels = []
    for name, mean_TT in means.items():
        rows = unstacked(pd.DataFrame(mean_TT.round(3), index=tasks[name], columns=tasks[name]))
        rows = rows.assign(note=f"n = {len(parts[name])}")
        panels.append(Heat(name, *axes, rows, colour, float(low), float(high)))
    return Chart(
        "Each task after each was learned",
        "Cells: mean over seeds. Below the diagonal: what is left of earlier tasks; above it: tasks not yet"
        " learned. One colour scale for all panels.",
        panels,
    )
