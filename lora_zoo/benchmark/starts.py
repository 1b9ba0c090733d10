"""How long it takes to put adapters into a model: each variant, and each start of the factors."""

import contextlib
import copy
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from lora_zoo.benchmark import peft_side
from lora_zoo.benchmark.contenders import TARGETS, adapts_matrices, hyper_of
from lora_zoo.benchmark.options import Options
from lora_zoo.benchmark.report import Curve, Report, Row
from lora_zoo.benchmark.shapes import Shape
from lora_zoo.benchmark.step import as_y, shown, spread
from lora_zoo.benchmark.timing import Prepare, Run, Spread, ratio
from lora_zoo.core import init as inits
from lora_zoo.core.variants import VARIANTS
from lora_zoo.inject.injection import inject
from lora_zoo.inject.plan import complete_hyperparameters

ABOUT = """\
Seconds of `inject` on all linear layers, r = 8 (VeRA: 256), and of `get_peft_model` with the same settings.
*again*: the same model a second time in the same process, as the second job of a sweep does. Each start is on
weights of its own, with a cache of its own that is empty at first."""
COLUMNS = {
    "shape": "shape",
    "variant": "variant",
    "init": "init",
    "first": "first, s",
    "again": "again, s",
    "peft": "PEFT, s",
    "again_over_first": "again / first",
    "first_over_peft": "first / PEFT",
}
FAST = ("pissa_niter_16", "pissa_halko_16")
LABELS = {"first": "first", "again": "again, same model", "peft": "PEFT"}
ROUNDS = 5
CACHE = "LORA_ZOO_CACHE"


def measure(options: Options, only: Sequence[str] = ()) -> Report:
    """`only` these starts, or all."""
    with own_cache():
        return report(_rows(options, only))


def _rows(options: Options, only: Sequence[str]) -> list[Row]:
    rows = []
    for shape in options.on("llama-768"):
        base = shape.model(options.dtype, options.device)
        pairs = [pair for variant in options.variants for pair in starts(variant)]
        rows += [
            measure_one(shape, base, variant, init, options)
            for variant, init in pairs
            if not only or init in only
        ]
    return rows


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """Inside, decompositions that are kept on disk lie in a folder of their own, which is empty at first."""
    with tempfile.TemporaryDirectory() as empty:
        before = os.environ.get(CACHE)
        os.environ[CACHE] = empty
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before


def starts(variant: str) -> Iterator[tuple[str, str]]:
    """A variant with its default start; plain LoRA with every start, PiSSA with the fast ones."""
    cls = VARIANTS.find(variant)
    if not adapts_matrices(cls):
        return
    usual = str(complete_hyperparameters(cls, hyper_of(variant)).get("init", "-"))
    yield variant, usual
    others = {"lora": list(inits.INITS), "pissa": list(FAST)}.get(variant, [])
    yield from ((variant, init) for init in others if init != usual)


def measure_one(shape: Shape, base: nn.Module, variant: str, init: str, options: Options) -> Row:
    hyper = hyper_of(variant, init=init)
    found: dict[str, Prepare] = {"first": _first(base, variant, hyper), "again": _again(base, variant, hyper)}
    if peft_side.has(variant) and peft_side.starts_as(variant, init):
        found["peft"] = _peft(base, variant, hyper)
    times = options.stopwatch(at_most=ROUNDS).alternate(found)
    row: Row = {"shape": shape.name, "variant": variant, "init": init}
    for name, taken in times.items():
        row |= spread(f"{name}_s", Spread.of(taken))
    row |= spread("again_over_first", ratio(times["again"], times["first"]))
    if "peft" in times:
        row |= spread("first_over_peft", ratio(times["first"], times["peft"]))
    return row


_DRAWN = itertools.count()


@torch.no_grad()
def fresh(base: nn.Module) -> nn.Module:
    """A copy of `base` with weights that have not been seen before."""
    model, g = copy.deepcopy(base), torch.Generator().manual_seed(10_000 + next(_DRAWN))
    for parameter in model.parameters():
        parameter.add_(1e-3 * torch.randn(parameter.shape, generator=g).to(parameter))
    return model


def _first(base: nn.Module, variant: str, hyper: Row) -> Prepare:
    def prepare() -> Run:
        model = fresh(base)
        return lambda: inject(model, variant, target_modules=TARGETS, **hyper)

    return prepare


def _again(base: nn.Module, variant: str, hyper: Row) -> Prepare:
    def prepare() -> Run:
        model = fresh(base)
        inject(model, variant, target_modules=TARGETS, **hyper).remove()
        return lambda: inject(model, variant, target_modules=TARGETS, **hyper)

    return prepare


def _peft(base: nn.Module, variant: str, hyper: Row) -> Prepare:
    ours = inject(copy.deepcopy(base), variant, target_modules=TARGETS, **hyper)
    complete, modules = ours.hyper, list(ours.matrices)

    def prepare() -> Run:
        model = fresh(base)
        return lambda: peft_side.wrapped(variant, complete, modules, model, started=True)

    return prepare


def report(rows: list[Row]) -> Report:
    cells = [
        {key: row[key] for key in ("shape", "variant", "init")}
        | {name: row.get(f"{name}_s") for name in LABELS}
        | {key: shown(row, key) for key in ("again_over_first", "first_over_peft")}
        for row in rows
    ]
    bars = [
        {"panel": row["shape"], "start": f"{row['variant']}\n{row['init']}", "who": label}
        | as_y(row, f"{name}_s")
        for row in rows
        for name, label in LABELS.items()
        if f"{name}_s" in row
    ]
    curve = Curve(
        title="Putting adapters into a model",
        x="start",
        group="who",
        x_label="variant and start",
        y_label="seconds",
        rows=bars,
        logarithmic=True,
    )
    return Report("init", "Initialisation", ABOUT, COLUMNS, rows, cells, curve=curve)
