"""One training step: its time as a multiple of the frozen baseline's, and the optimiser's."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from lora_zoo.bench.floor import floor
from lora_zoo.bench.options import DROPOUT, Options
from lora_zoo.bench.paths import LABELS, StepPath, adapted, paths
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import REFERENCE, SHAPES, Shape
from lora_zoo.bench.timing import Prepare, Run, Timed, summary, texts

ABOUT = """\
Forward, loss and backward (AdaLoRA: with its regulariser and allocation) on all linear layers, r = 8 (VeRA:
256), as multiples of the *frozen baseline*: the frozen model's forward and the backward that carries the
input's gradient through all layers with nothing adapted. *fused* is the variant as it is, *plain* its
definition `F.linear(x, weight(W))` (which knows no dropout), *PEFT* its adapter with the same settings and
tensors. Medians over rounds with quartiles; a round takes each path once, in random order, and ratios are
taken within a round. *floor*: the multiplications and the bytes, as multiples of the frozen layers' own, that
no order of operations avoids (`lora_zoo/bench/floor.py`); dropout has no part in it. *optimiser*: AdamW's
step alone with what the variant puts around it (PEFT's: AdamW's alone), in ms."""
TIMES = (
    Timed("frozen, ms", "frozen_ms", "frozen", unit=1e3, digits=".2f"),
    Timed("fused / frozen", "fused", "fused", "frozen"),
    Timed("plain / frozen", "plain", "plain", "frozen"),
    Timed("PEFT / frozen", "peft", "peft", "frozen"),
    Timed("fused / plain", "fused_over_plain", "fused", "plain"),
    Timed("fused / PEFT", "fused_over_peft", "fused", "peft"),
)
FLOOR = {"floor": "{floor_multiplications:.2f}", "floor, bytes": "{floor_bytes:.2f}"}
OPTIMISERS = (
    Timed("optimiser", "optimiser_ms", "fused", unit=1e3, digits=".2f"),
    Timed("PEFT's optimiser", "optimiser_peft_ms", "peft", unit=1e3, digits=".2f"),
)


def measure(options: Options) -> Measurement:
    cases = options.cases(REFERENCE if options.quick else SHAPES, options.variants)
    rows = [row for case in cases for row in measure_one(*case, options)]
    keys, columns = ("shape", "variant", "dropout"), texts(TIMES) | FLOOR | texts(OPTIMISERS)
    return Measurement(
        "step", "One training step", ABOUT, keys, columns, rows, "step / frozen baseline", LABELS
    )


def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options) -> list[Values]:
    """A row for each dropout."""
    watch = options.stopwatch()
    found = paths(shape, base, variant, device=options.device, dropouts=(0.0, DROPOUT))
    steps = watch.interleave({key: path.prepare for key, path in found.items()})
    least = floor(adapted(base, variant), shape.tokens)
    updates = watch.interleave({key: _update(path) for key, path in found.items() if path.parameters})
    return [
        {"shape": shape.name, "variant": variant, "dropout": dropout}
        | summary(TIMES, with_dropout(steps, dropout) | {"frozen": steps["frozen", 0.0]})
        | least
        | summary(OPTIMISERS, with_dropout(updates, dropout))
        for name, dropout in found
        if name == "fused"
    ]


def with_dropout(times: Mapping[tuple[str, float], list[float]], dropout: float) -> dict[str, list[float]]:
    return {name: seconds for (name, p), seconds in times.items() if p == dropout}


def _update(path: StepPath) -> Prepare:
    """The optimiser's step alone, on gradients of zero, so that the path stays as it is."""
    optimiser = path.optimizer(partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0))

    def prepare() -> Run:
        for parameter in path.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return optimiser.step

    return prepare
