"""Figures of results: each function takes plain frames and gives a `Chart`.

frame = lora_zoo.runs.loading("runs")
chart = figures.against(frame, "rank", by=["variant"])
chart.save("figures/rank")                                # .svg, .pdf, .png
plotly.graph_objects.Figure(chart.interactive()[0])       # the same for a notebook
"""

from lora_zoo.report.figures.against_base import amplification, intruders, touched
from lora_zoo.report.figures.changes import layer_ranks, spectra, subspaces
from lora_zoo.report.figures.chart import Axis, Chart, Nothing, Panel, Series
from lora_zoo.report.figures.comparisons import against, grid, pareto, profiles
from lora_zoo.report.figures.curves import curves
from lora_zoo.report.figures.deltas import decay, evolution, magnitude_direction, ranks

__all__ = [
    "Axis",
    "Chart",
    "Nothing",
    "Panel",
    "Series",
    "against",
    "amplification",
    "curves",
    "decay",
    "evolution",
    "grid",
    "intruders",
    "layer_ranks",
    "magnitude_direction",
    "pareto",
    "profiles",
    "ranks",
    "spectra",
    "subspaces",
    "touched",
]
