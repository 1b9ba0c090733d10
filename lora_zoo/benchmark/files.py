"""Saving, loading and merging an adapter, beside PEFT."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lora_zoo.benchmark import peft_side
from lora_zoo.benchmark.contenders import TARGETS, adapts_matrices, hyper_of
from lora_zoo.benchmark.options import Options
from lora_zoo.benchmark.report import Curve, Report, Row
from lora_zoo.benchmark.shapes import Shape
from lora_zoo.benchmark.step import as_y, shown, spread
from lora_zoo.benchmark.timing import Prepare, Run, Spread, ratio
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.inject.injection import Injection, inject

ABOUT = """\
Milliseconds to save an adapter of all linear layers (r = 8, VeRA: 256), to load it into a model that is
there, and to merge it; PEFT: `save_pretrained`, `PeftModel.from_pretrained`, `merge_adapter`. The file lies
where the system keeps temporary ones."""
DOES = ("save", "load", "merge")
COLUMNS = {"shape": "shape", "variant": "variant"} | {
    f"{do}{key}": f"{do}{head}"
    for do in DOES
    for key, head in (("_ms", ", ms"), ("_peft_ms", ", PEFT, ms"), ("_over_peft", " / PEFT"))
}
ROUNDS = 7
Doing = dict[str, Prepare]


def measure(options: Options) -> Report:
    rows = []
    for shape in options.on("llama-768"):
        base = shape.model(options.dtype, options.device)
        for variant in filter(lambda name: adapts_matrices(VARIANTS.find(name)), options.variants):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure_one(shape, base, variant, options, Path(folder)))
    return report(rows)


def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options, folder: Path) -> Row:
    injection = inject(copy.deepcopy(base), variant, target_modules=TARGETS, **hyper_of(variant))
    found = {(do, "ours"): make for do, make in ours(injection, base, folder / "ours").items()}
    if peft_side.has(variant):
        found |= {(do, "peft"): make for do, make in theirs(injection, base, folder / "peft").items()}
    times = options.stopwatch(at_most=ROUNDS).alternate(found)
    row: Row = {"shape": shape.name, "variant": variant}
    for do in DOES:
        row |= spread(f"{do}_ms", Spread.of([1e3 * t for t in times[do, "ours"]]))
        if (do, "peft") in times:
            row |= spread(f"{do}_peft_ms", Spread.of([1e3 * t for t in times[do, "peft"]]))
            row |= spread(f"{do}_over_peft", ratio(times[do, "ours"], times[do, "peft"]))
    return row


def ours(injection: Injection, base: nn.Module, folder: Path) -> Doing:
    save_adapter(injection, folder)

    def load() -> Run:
        model = copy.deepcopy(base)
        return lambda: load_adapter(model, folder)

    def merge() -> Run:
        injection.unmerge()
        return injection.merge

    return {"save": lambda: lambda: save_adapter(injection, folder), "load": load, "merge": merge}


def theirs(injection: Injection, base: nn.Module, folder: Path) -> Doing:
    import peft

    name, hyper, modules = injection.variant.name, injection.hyper, list(injection.matrices)
    adapted = peft_side.wrapped(name, hyper, modules, copy.deepcopy(base))
    adapted.save_pretrained(str(folder))
    merging = _Merging(adapted)

    def load() -> Run:
        model = copy.deepcopy(base)
        return lambda: peft.PeftModel.from_pretrained(model, str(folder))

    return {"save": lambda: lambda: adapted.save_pretrained(str(folder)), "load": load, "merge": merging}


class _Merging:
    """PEFT's merge, undone off the clock before the next."""

    def __init__(self, adapted: Any) -> None:
        self.adapted, self.merged = adapted, False

    def __call__(self) -> Callable[[], None]:
        if self.merged:
            self.adapted.unmerge_adapter()
        self.merged = True
        return self.adapted.merge_adapter


def report(rows: list[Row]) -> Report:
    cells = [
        {key: row[key] for key in ("shape", "variant")}
        | {f"{do}{end}": row.get(f"{do}{end}") for do in DOES for end in ("_ms", "_peft_ms")}
        | {f"{do}_over_peft": shown(row, f"{do}_over_peft") for do in DOES}
        for row in rows
    ]
    bars = [
        {"panel": f"{do} ({row['shape']})", "variant": row["variant"], "who": label}
        | as_y(row, f"{do}{name}")
        for row in rows
        for do in DOES
        for name, label in (("_ms", "lora_zoo"), ("_peft_ms", "PEFT"))
        if f"{do}{name}" in row
    ]
    curve = Curve(
        title="Saving, loading and merging",
        x="variant",
        group="who",
        x_label="variant",
        y_label="milliseconds",
        rows=sorted(bars, key=lambda bar: DOES.index(bar["panel"].partition(" ")[0])),
    )
    return Report("io", "Files and merging", ABOUT, COLUMNS, rows, cells, curve=curve)
