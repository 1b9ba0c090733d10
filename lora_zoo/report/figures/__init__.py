# ruff: noqa: F401
"""Figures of results: each function takes plain frames and gives a `Chart`.

frame = lora_zoo.runs.load("runs")
chart = figures.against(frame, "rank", by=["variant"])
chart.save("figures/rank")             # .svg, .pdf, .png
chart.spec                             # the same as a Vega-Lite specification
chart.panels[0].rows                   # and its numbers
"""

from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.chart import Chart
from lora_zoo.report.figures.continual import accuracy_matrix
from lora_zoo.report.figures.deltas import decay, evolution, magnitude_direction, ranks, spectra
from lora_zoo.report.figures.groups import Nothing
from lora_zoo.report.figures.learning import forgetting, learned
from lora_zoo.report.figures.maps import agreement, grid, layer_ranks, subspaces
from lora_zoo.report.figures.merges import merges
from lora_zoo.report.figures.outcomes import against, curves, pareto, profiles
from lora_zoo.report.figures.planes import Bands, Crosses, Marks, Points
from lora_zoo.report.figures.rank_history import rank_history
from lora_zoo.report.figures.routing import routing
from lora_zoo.report.figures.rows import line, stack
from lora_zoo.report.figures.style import series_styles
from lora_zoo.report.figures.vs_base import amplification, intruders, overlap
