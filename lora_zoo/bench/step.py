"""One training step: its time as a multiple of the frozen baseline's, and the optimiser's."""

from collections.abc import Mapping

import torch
from torch import nn

from lora_zoo.bench.figures import DotPlot
from lora_zoo.bench.options import DROPOUT, Options
from lora_zoo.bench.paths import LABELS, paths
from lora_zoo.bench.report import Measurement, Values, with_quartiles
from lora_zoo.bench.shapes import REFERENCE, SHAPES, Shape
from lora_zoo.bench.step_path import StepPath
from lora_zoo.bench.timing import Prepare, ratios, spread, spread_ms

ABOUT = """\
Forward, loss and backward (AdaLoRA: with its regulariser and allocation) on all linear layers, r = 8 (VeRA:
256), as multiples of the *frozen baseline*: the frozen model's forward and the backward that carries the input's
gradient through all layers with nothing adapted. *fused* is the variant as it is, *plain* its definition
`F.linear(x, weight(W))` (which knows no dropout), *PEFT* its adapter with the same settings and tensors.
Medians over rounds with quartiles; a round takes each path once, in random order, and ratios are taken
within a round. *optimiser*: AdamW's step alone, in ms."""
RATIOS = {
    "frozen, ms": "{frozen_ms:.2f}",
    "fused / frozen": with_quartiles("fused"),
    "plain / frozen": with_quartiles("plain"),
    "PEFT / frozen": with_quartiles("peft"),
    "fused / plain": with_quartiles("fused_over_plain"),
    "fused / PEFT": with_quartiles("fused_over_peft"),
}
"""The columns of `relative`."""
COLUMNS = {"shape": "{shape}", "variant": "{variant}", "dropout": "{dropout:g}"} | RATIOS
COLUMNS |= {"optimiser": "{optimiser_ms:.2f}", "PEFT's optimiser": "{optimiser_peft_ms:.2f}"}
FIGURE = DotPlot(
    "One training step as a multiple of the frozen baseline",
    LABELS,
    "step / frozen baseline",
    panel="{shape}, dropout {dropout:g}",
)


def measure(options: Options) -> Measurement:
    cases = options.cases(REFERENCE if options.quick else SHAPES, options.variants)
    rows = [row for case in cases for row in measure_one(*case, options)]
    return Measurement("step", "One training step", ABOUT, COLUMNS, rows, FIGURE)


def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options) -> list[Values]:
    """A row for each dropout."""
    dropouts, watch = (0.0, DROPOUT), options.stopwatch()
    found = paths(shape, base, variant, device=options.device, dropouts=dropouts)
    steps = watch.interleave({key: path.prepare for key, path in found.items()})
    updates = watch.interleave({key: _update(path) for key, path in found.items() if path.parameters})
    rows: list[Values] = []
    for dropout in (p for name, p in found if name == "fused"):
        own = {name: times for (name, p), times in steps.items() if p == dropout}
        row: Values = {"shape": shape.name, "variant": variant, "dropout": dropout}
        row |= relative(own | {"frozen": steps["frozen", 0.0]})
        for name, column in (("fused", "optimiser_ms"), ("peft", "optimiser_peft_ms")):
            if (name, dropout) in updates:
                row |= spread_ms(column, updates[name, dropout])
        rows.append(row)
    return rows


def relative(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Each path's time as a multiple of the frozen baseline's, and the fused one's of the others'."""
    row = spread_ms("frozen_ms", times["frozen"])
    for name in LABELS:
        if name in times:
            row |= spread(name, ratios(times[name], times["frozen"]))
    for other in ("plain", "peft"):
        if other in times:
            row |= spread(f"fused_over_{other}", ratios(times["fused"], times[other]))
    return row


def _update(path: StepPath) -> Prepare:
    """The optimiser's step alone, on gradients of zero, so that the path stays as it is."""
    optimiser = torch.optim.AdamW(path.groups(), lr=1e-4, weight_decay=0.0)

    def prepare() -> Prepare:
        for parameter in path.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return optimiser.step

    return prepare
