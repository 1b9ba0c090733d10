"""Learning in bits, beside all that there was to learn; and forgetting, which it may have cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lora_zoo.analysis.statistics import interval
from lora_zoo.report.figures.axes import axis_of, value_axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.groups import Group, done, groups
from lora_zoo.report.figures.outcomes import INTERVAL, against
from lora_zoo.report.figures.planes import Crosses, Marks
from lora_zoo.report.figures.rows import line, stack
from lora_zoo.report.figures.style import series_styles

INFORMATION = "data.train.information"
"""The column of the bits that all answers of a task hold together."""


def learned(runs: pd.DataFrame, x: str, by: Sequence[str], *, value: str = "bits") -> Chart:
    """Bits (or `bits_per_parameter`) against `x`, as `against` draws them; a grey line where all bits lie.

    The line is missing where the runs' tasks hold different amounts. Raises Nothing where no run counts bits.
    """
    finished = done(runs, x, value)
    chart = against(finished, x, by, value=value)
    most = finished[INFORMATION].unique() if INFORMATION in finished else np.array([])
    if value != "bits" or len(most) != 1 or not np.isfinite(most[0]):
        return chart
    marked = [panel for panel in chart.panels if isinstance(panel, Marks)]
    return replace(chart, panels=[replace(p, baselines=_all(p, float(most[0]))) for p in marked])


def _all(panel: Marks, bits: float) -> pd.DataFrame:
    ends = [float(panel.rows["x"].min()), float(panel.rows["x"].max())]
    return line("all there is", ends, [bits, bits])


def forgetting(runs: pd.DataFrame, by: Sequence[str], *, value: str = "test") -> Chart:
    """`value` against the rise of the loss on held-out text, a point a group with both intervals.

    A panel a task. Where every run was judged before training, too, `value` is the gain on it. Raises Nothing
    where no run has measured the loss.
    """
    finished, before = done(runs, "forgetting", value), f"zero_shot_{value}"
    gained = before in finished and bool(finished[before].notna().all())
    if gained:
        finished = finished.assign(**{value: finished[value] - finished[before]})
    x, panels = axis_of("forgetting"), []
    within = [axis for axis in by if axis != "task"]
    for task in groups(finished, ["task"]):
        y = value_axis(task.runs, value)
        y = replace(y, label=f"gain in {y.label}") if gained else y
        panels.append(Crosses(task.name, x, y, stack(_point(g, value) for g in groups(task.runs, within))))
    styles = series_styles((name, "") for panel in panels for name in panel.names)
    caption = f"Points: {INTERVAL}, both ways. Up is learned, right is forgotten."
    return Chart("What was learned against what was forgotten", caption, panels, styles)


def _point(group: Group, value: str) -> pd.DataFrame:
    y, x = (interval(group.runs[name].astype(float)) for name in (value, "forgetting"))
    point = line(group.head, [x.estimate], y.estimate, y.low, y.high, note=group.member)
    return point.assign(left=x.low, right=x.high)
