"""How a step's cost grows with rank, width, tokens and adapted layers; with jobs: the table of sweeps."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lora_zoo.benchmark.contenders import adapts_matrices, contenders
from lora_zoo.benchmark.options import Options
from lora_zoo.benchmark.report import Curve, Report, Row
from lora_zoo.benchmark.shapes import Shape, llama
from lora_zoo.benchmark.step import as_y, prepared, shown, spread
from lora_zoo.benchmark.timing import Prepare, Spread, ratio
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS

ABOUT = """\
A step (see the table of steps) as a multiple of the frozen limit of the same model, along one axis at a time:
`rank` on hidden 768 and 256 tokens; `width` (hidden), `tokens` and `layers` (adapted, of 8) around hidden 192
and 512 tokens. The number of jobs is in the table of sweeps. VeRA's rank is 256 but where it is the axis."""
COLUMNS = {
    "axis": "axis",
    "value": "value",
    "variant": "variant",
    "limit": "limit, ms",
    "fused": "fused / limit",
    "plain": "plain / limit",
    "peft": "PEFT / limit",
    "fused_over_peft": "fused / PEFT",
}
DEFAULT_VARIANTS = ("lora", "dora", "vera")
"""What is measured where no variant was named."""
ROUNDS = 5
LABELS = {"fused": "fused", "plain": "plain", "peft": "PEFT"}


class Point(NamedTuple):
    axis: str
    value: int
    shape: Shape
    more: Mapping[str, Any]


def measure(options: Options) -> Report:
    rows = []
    for point in points(options.quick):
        base = point.shape.model(options.dtype, options.device)
        for variant in options.named or DEFAULT_VARIANTS:
            if _meant(point, variant):
                rows.append(_row(point, base, variant, options))
    return report(rows)


def points(quick: bool) -> Iterator[Point]:
    """Every place along every axis; `quick`: the ends of each."""

    def along(*values: int) -> tuple[int, ...]:
        return (values[0], values[-1]) if quick else values

    wide = _shape(768, 256, layers=1)
    for rank in along(1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        yield Point("rank", rank, wide, {"rank": rank})
    for width in along(128, 192, 384, 768, 1536):
        yield Point("width", width, _shape(width, 512, layers=1), {})
    for tokens in along(32, 128, 512, 2048):
        yield Point("tokens", tokens, _shape(192, tokens, layers=2), {})
    for layers in along(1, 2, 4, 8):
        yield Point("layers", layers, _shape(192, 512, layers=8), {"layers": f"{8 - layers}-"})


def _shape(hidden: int, tokens: int, *, layers: int) -> Shape:
    length = min(tokens, 128)
    return llama(
        f"hidden {hidden}, {tokens} tokens",
        "",
        hidden=hidden,
        intermediate=hidden * 8 // 3 // 16 * 16,
        layers=layers,
        heads=hidden // 32,
        sequences=tokens // length,
        length=length,
    )


def _meant(point: Point, variant: str) -> bool:
    """Whether a variant has what the axis is about."""
    cls = VARIANTS.find(variant)
    return adapts_matrices(cls) and (point.axis != "rank" or "rank" in hyperparameters(cls))


def _row(point: Point, base: Any, variant: str, options: Options) -> Row:
    found = contenders(point.shape, base, variant, device=options.device, **point.more)
    steps: dict[str, Prepare] = {path: prepared(contender) for (path, _), contender in found.items()}
    times = options.stopwatch(at_most=ROUNDS).alternate(steps)
    row: Row = {"axis": point.axis, "value": point.value, "variant": variant, "shape": point.shape.name}
    row |= spread("limit_ms", Spread.of([1e3 * t for t in times["limit"]]))
    for path in times.keys() - {"limit"}:
        row |= spread(path, ratio(times[path], times["limit"]))
    if "peft" in times:
        row |= spread("fused_over_peft", ratio(times["fused"], times["peft"]))
    return row


def report(rows: list[Row]) -> Report:
    cells: list[Row] = [
        {key: row[key] for key in ("axis", "value", "variant")}
        | {"limit": f"{row['limit_ms']:.2f}"}
        | {key: shown(row, key) for key in (*LABELS, "fused_over_peft")}
        for row in rows
    ]
    lines = [
        {"panel": row["axis"], "x": row["value"], "who": f"{row['variant']}, {label}"} | as_y(row, path)
        for row in rows
        for path, label in LABELS.items()
        if path in row and path != "plain"
    ]
    curve = Curve(
        title="A step as a multiple of the frozen limit, along four axes",
        x="x",
        group="who",
        x_label="rank; hidden size; tokens; adapted layers (from the top)",
        y_label="step / frozen limit",
        rows=lines,
        level=1.0,
    )
    return Report("scaling", "Scaling", ABOUT, COLUMNS, rows, cells, curve=curve)
