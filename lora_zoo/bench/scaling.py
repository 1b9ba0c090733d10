"""A step's cost by rank, width, tokens and adapted layers; by jobs: see the table of sweeps."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from lora_zoo.bench.options import Options
from lora_zoo.bench.paths import LABELS, adapts_matrices, paths
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import Shape
from lora_zoo.bench.step import TIMES
from lora_zoo.bench.timing import summary, texts
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS

ABOUT = """\
A step (see the table of steps) as a multiple of the frozen baseline of the same model, along one axis at a
time: `rank` on hidden 768 and 256 tokens; `width` (hidden), `tokens` and `layers` (adapted, of 8) around
hidden 192 and 512 tokens. The number of jobs is in the table of sweeps. VeRA's rank is 256, except along
`rank`."""
DEFAULT_VARIANTS = ("lora", "dora", "vera")
"""Measured where no variant was named."""
ROUNDS = 5


class ScalingPoint(NamedTuple):
    axis: str
    value: int
    shape: Shape
    wanted: Mapping[str, Any]


def measure(options: Options) -> Measurement:
    rows = []
    for point in points(options.quick):
        base = point.shape.model(options.dtype, options.device)
        applicable = (name for name in options.named or DEFAULT_VARIANTS if applies(point, name))
        rows += [measure_one(point, base, name, options) for name in applicable]
    keys, columns, unit = ("axis", "value", "variant"), texts(TIMES), "step / frozen baseline"
    return Measurement("scaling", "Scaling", ABOUT, keys, columns, rows, unit, LABELS)


def points(quick: bool) -> Iterator[ScalingPoint]:
    """Every point along every axis; `quick`: the ends of each."""

    def along(*values: int) -> tuple[int, ...]:
        return (values[0], values[-1]) if quick else values

    for rank in along(1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        yield ScalingPoint("rank", rank, _shape(768, 256, layers=1), {"rank": rank})
    for width in along(128, 192, 384, 768, 1536):
        yield ScalingPoint("width", width, _shape(width, 512, layers=1), {})
    for tokens in along(32, 128, 512, 2048):
        yield ScalingPoint("tokens", tokens, _shape(192, tokens, layers=2), {})
    for layers in along(1, 2, 4, 8):
        yield ScalingPoint("layers", layers, _shape(192, 512, layers=8), {"layers": f"{8 - layers}-"})


def _shape(hidden: int, tokens: int, *, layers: int) -> Shape:
    name, length = f"hidden {hidden}, {tokens} tokens", min(tokens, 128)
    intermediate = hidden * 8 // 3 // 16 * 16
    return Shape(name, hidden, intermediate, layers, hidden // 32, tokens // length, length)


def applies(point: ScalingPoint, variant: str) -> bool:
    """False where the variant has nothing that grows along the axis."""
    ranked = "rank" in hyperparameters(VARIANTS.find(variant))
    return adapts_matrices(variant) and (point.axis != "rank" or ranked)


def measure_one(point: ScalingPoint, base: nn.Module, variant: str, options: Options) -> Values:
    found = paths(point.shape, base, variant, device=options.device, **point.wanted)
    times = options.stopwatch(at_most=ROUNDS).interleave({name: p.prepare for (name, _), p in found.items()})
    row: Values = {"axis": point.axis, "value": point.value, "variant": variant, "shape": point.shape.name}
    return row | summary(TIMES, times)
