"""The rest of each task in models that are composed of several runs."""

import numpy as np
import pandas as pd

from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Nothing
from lora_zoo.report.figures.heat import Heat, unstacked


def merges(table: pd.DataFrame) -> Chart:
    """Composition by task, a panel a metric and split; means over models.

    `table` is that of `lora_zoo.runs.merges`. The first row is each run alone, the last column the mean over
    the tasks that a composition has.
    """
    if table.empty:
        raise Nothing("no composed model was judged (python -m lora_zoo.compose … --evaluate SPLIT)")
    panels = []
    for (metric, split), part in table.groupby(["metric", "split"], sort=True):
        alone = part.drop_duplicates(["run", "task"]).groupby("task", sort=True)["alone"].mean()
        named = part.assign(of=(part["by"] + " " + part["options"]).str.strip())
        left = named.pivot_table("composed", "of", "task", sort=False)
        wide = pd.concat([alone.to_frame("alone").T, left]).reindex(columns=alone.index)
        low, high = float(np.nanmin(wide)), float(np.nanmax(wide))
        rows = unstacked(wide.assign(mean=wide.mean(axis=1)).round(3))
        panels.append(
            Heat(f"{metric}, {split}", Axis("task"), Axis("composition"), rows, Axis(metric), low, high)
        )
    return Chart(
        "What is left of each task in one model",
        "Cells: mean over composed models. Row alone: each run's own adapter on its own task.",
        panels,
    )
