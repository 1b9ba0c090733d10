"""Saving, loading and merging an adapter, beside PEFT."""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from lora_zoo.bench import peft
from lora_zoo.bench.options import Options
from lora_zoo.bench.paths import inject_linear
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import Shape
from lora_zoo.bench.timing import Prepare, Run, Timed, summary, texts
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.inject import Injection

ABOUT = """\
Milliseconds to save an adapter of all linear layers (r = 8, VeRA: 256), to load it into a model that is
there, and to merge it; PEFT: `save_pretrained`, `PeftModel.from_pretrained`, `merge_adapter`. The file lies
where the system keeps temporary ones."""
OPERATIONS = ("save", "load", "merge")
TIMES = [
    column
    for name in OPERATIONS
    for column in (
        Timed(f"{name}, ms", f"{name}_ms", name, unit=1e3),
        Timed(f"{name}, PEFT, ms", f"{name}_peft_ms", f"{name}, PEFT", unit=1e3),
        Timed(f"{name} / PEFT", f"{name}_over_peft", name, f"{name}, PEFT"),
    )
]
PLOTTED = {column.name: column.of for column in TIMES if not column.over}
ROUNDS = 7


def measure(options: Options) -> Measurement:
    rows = [measure_one(*case, options) for case in options.cases(("llama-768",), options.adapters)]
    keys = ("shape", "variant")
    return Measurement("io", "Files and merging", ABOUT, keys, texts(TIMES), rows, "milliseconds", PLOTTED)


def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options) -> Values:
    with tempfile.TemporaryDirectory() as folder:
        injection = inject_linear(copy.deepcopy(base), variant)
        found = ours(injection, base, Path(folder, "ours"))
        if peft.has(injection):
            theirs = in_peft(injection, base, str(Path(folder, "peft")))
            found |= {f"{name}, PEFT": prepare for name, prepare in theirs.items()}
        times = options.stopwatch(at_most=ROUNDS).interleave(found)
    return {"shape": shape.name, "variant": variant} | summary(TIMES, times)


def ours(injection: Injection, base: nn.Module, folder: Path) -> dict[str, Prepare]:
    save, load = partial(save_adapter, injection, folder), partial(load_adapter, folder=folder)
    return operations(base, save, load, injection.merge, injection.unmerge)


def in_peft(injection: Injection, base: nn.Module, folder: str) -> dict[str, Prepare]:
    from peft import PeftModel

    adapted = peft.wrap(copy.deepcopy(base), peft.config(injection))
    save, load = partial(adapted.save_pretrained, folder), partial(PeftModel.from_pretrained, model_id=folder)
    return operations(base, save, load, adapted.merge_adapter, adapted.unmerge_adapter)


def operations(
    base: nn.Module, save: Run, load: Callable[[nn.Module], object], merge: Run, unmerge: Run
) -> dict[str, Prepare]:
    """The calls to time, of an adapter that is saved and merged already; off the clock it is unmerged."""
    save()
    merge()

    def again() -> Run:
        unmerge()
        return merge

    return {"save": lambda: save, "load": lambda: partial(load, copy.deepcopy(base)), "merge": again}
