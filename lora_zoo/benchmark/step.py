"""One training step of every variant, by every path, as multiples of the frozen limit."""

from collections.abc import Mapping

import torch
from torch import nn

from lora_zoo.benchmark.contenders import Contender, contenders
from lora_zoo.benchmark.options import DROPOUT, Options
from lora_zoo.benchmark.report import Curve, Report, Row
from lora_zoo.benchmark.shapes import REFERENCE, SHAPES, Shape
from lora_zoo.benchmark.timing import Prepare, Spread, ratio

ABOUT = """\
Forward, loss and backward (AdaLoRA: with its regulariser and allocation) on all linear layers, r = 8 (VeRA:
256), as multiples of the *frozen limit*: the frozen model's forward and the backward that carries the input's
gradient through all layers with nothing adapted. *fused* is the variant as it is, *plain* its definition
`F.linear(x, weight(W))` (which knows no dropout), *PEFT* its adapter with the same settings and tensors.
Medians over rounds with quartiles; a round takes each contender once, in random order, and ratios are taken
within a round. *optimiser*: AdamW's step alone, in ms."""
COLUMNS = {
    "shape": "shape",
    "variant": "variant",
    "dropout": "dropout",
    "limit": "limit, ms",
    "fused": "fused / limit",
    "plain": "plain / limit",
    "peft": "PEFT / limit",
    "fused_over_plain": "fused / plain",
    "fused_over_peft": "fused / PEFT",
    "optimiser": "optimiser",
    "optimiser_peft": "PEFT's optimiser",
}
Times = Mapping[tuple[str, float], list[float]]
PATHS = {"fused": "fused (as it is)", "plain": "plain (definition)", "peft": "PEFT"}


def measure(options: Options) -> Report:
    rows: list[Row] = []
    for shape in options.on(*(REFERENCE if options.quick else SHAPES)):
        base = shape.model(options.dtype, options.device)
        for variant in options.variants:
            rows += measure_one(shape, base, variant, options)
    return report(rows)


def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options) -> list[Row]:
    """A row for each dropout."""
    dropouts = (0.0, DROPOUT)
    found = contenders(shape, base, variant, device=options.device, dropouts=dropouts)
    watch = options.stopwatch()
    times = watch.alternate({key: prepared(c) for key, c in found.items()})
    updates = watch.alternate({key: _update(c) for key, c in found.items() if c.parameters})
    return [_row(shape, variant, p, times, updates) for p in dropouts if ("fused", p) in times]


def _row(shape: Shape, variant: str, dropout: float, times: Times, updates: Times) -> Row:
    row: Row = {"shape": shape.name, "variant": variant, "dropout": dropout}
    row |= spread("limit_ms", Spread.of([1e3 * t for t in times["limit", 0.0]]))
    for path in PATHS:
        if (path, dropout) in times:
            row |= spread(path, ratio(times[path, dropout], times["limit", 0.0]))
    for other in ("plain", "peft"):
        if (other, dropout) in times:
            row |= spread(f"fused_over_{other}", ratio(times["fused", dropout], times[other, dropout]))
    for path, name in (("fused", "optimiser"), ("peft", "optimiser_peft")):
        if (path, dropout) in updates:
            row |= spread(f"{name}_ms", Spread.of([1e3 * t for t in updates[path, dropout]]))
    return row


def prepared(contender: Contender) -> Prepare:
    return lambda: contender.step


def _update(contender: Contender) -> Prepare:
    """The optimiser's step alone, on gradients of zero, so that the contender stays as it is."""
    optimiser = torch.optim.AdamW(contender.groups(), lr=1e-4, weight_decay=0.0)

    def prepare() -> Prepare:
        for parameter in contender.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return optimiser.step

    return prepare


def spread(name: str, value: Spread) -> Row:
    return {name: value.median, f"{name}_low": value.low, f"{name}_high": value.high}


def as_y(row: Row, name: str) -> Row:
    """A value and its quartiles as a figure's `y`."""
    return {f"y{end}": row[f"{name}{end}"] for end in ("", "_low", "_high")}


def shown(row: Row, name: str) -> str | None:
    """A value and its quartiles as a cell."""
    return str(Spread(row[name], row[f"{name}_low"], row[f"{name}_high"])) if name in row else None


def report(rows: list[Row]) -> Report:
    ratios = ("fused", "plain", "peft", "fused_over_plain", "fused_over_peft")
    cells = [
        {key: row[key] for key in ("shape", "variant", "dropout")}
        | {key: shown(row, key) for key in ratios}
        | {key: _ms(row, f"{key}_ms") for key in ("limit", "optimiser", "optimiser_peft")}
        for row in rows
    ]
    bars = [
        {"panel": f"{row['shape']}, dropout {row['dropout']:g}", "variant": row["variant"], "path": label}
        | as_y(row, path)
        for row in rows
        for path, label in PATHS.items()
        if path in row
    ]
    curve = Curve(
        title="One training step as a multiple of the frozen limit",
        x="variant",
        group="path",
        x_label="variant (whiskers: quartiles over rounds)",
        y_label="step / frozen limit",
        rows=bars,
        level=1.0,
    )
    return Report("step", "One training step", ABOUT, COLUMNS, rows, cells, curve=curve)


def _ms(row: Row, name: str) -> str | None:
    return f"{row[name]:.2f}" if name in row else None
