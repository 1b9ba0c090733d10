"""Saving, loading and merging an adapter, beside PEFT."""

import copy
import tempfile
from functools import partial
from pathlib import Path

from torch import nn

from lora_zoo.adapters.checkpoint import load_adapter, save_adapter
from lora_zoo.adapters.injection import Injection
from lora_zoo.bench import peft
from lora_zoo.bench.figures import DotPlot
from lora_zoo.bench.options import Options
from lora_zoo.bench.report import Measurement, Values, with_quartiles
from lora_zoo.bench.shapes import Shape
from lora_zoo.bench.step_path import inject_linear
from lora_zoo.bench.timing import Prepare, Run, ratios, spread, spread_ms

ABOUT = """\
Milliseconds to save an adapter of all linear layers (r = 8, VeRA: 256), to load it into a model that is
there, and to merge it; PEFT: `save_pretrained`, `PeftModel.from_pretrained`, `merge_adapter`. The file lies
where the system keeps temporary ones."""
OPERATIONS = ("save", "load", "merge")
COLUMNS = {"shape": "{shape}", "variant": "{variant}"}
for _name in OPERATIONS:
    COLUMNS |= {f"{_name}, ms": f"{{{_name}_ms:.3g}}", f"{_name}, PEFT, ms": f"{{{_name}_peft_ms:.3g}}"}
    COLUMNS |= {f"{_name} / PEFT": with_quartiles(f"{_name}_over_peft")}
SERIES = {
    f"{name}{end}_ms": f"{name}{who}" for end, who in (("", ""), ("_peft", ", PEFT")) for name in OPERATIONS
}
FIGURE = DotPlot("Saving, loading and merging", SERIES, "milliseconds", scale="log")
ROUNDS = 7


def measure(options: Options) -> Measurement:
    rows = [measure_one(*case, options) for case in options.cases(("llama-768",), options.adapters)]
    return Measurement("io", "Files and merging", ABOUT, COLUMNS, rows, FIGURE)


def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options) -> Values:
    with tempfile.TemporaryDirectory() as folder:
        injection = inject_linear(copy.deepcopy(base), variant)
        found = {(name, "ours"): make for name, make in ours(injection, base, Path(folder, "ours")).items()}
        if peft.has(variant):
            theirs = peft_operations(injection, base, str(Path(folder, "peft")))
            found |= {(name, "peft"): make for name, make in theirs.items()}
        times = options.stopwatch(at_most=ROUNDS).interleave(found)
    row: Values = {"shape": shape.name, "variant": variant}
    for name in OPERATIONS:
        row |= spread_ms(f"{name}_ms", times[name, "ours"])
        if (name, "peft") in times:
            row |= spread_ms(f"{name}_peft_ms", times[name, "peft"])
            row |= spread(f"{name}_over_peft", ratios(times[name, "ours"], times[name, "peft"]))
    return row


def ours(injection: Injection, base: nn.Module, folder: Path) -> dict[str, Prepare]:
    save = partial(save_adapter, injection, folder)
    save()

    def merge() -> Run:
        injection.unmerge()
        return injection.merge

    return {
        "save": lambda: save,
        "load": lambda: partial(load_adapter, copy.deepcopy(base), folder),
        "merge": merge,
    }


def peft_operations(injection: Injection, base: nn.Module, folder: str) -> dict[str, Prepare]:
    from peft import PeftModel

    adapted = peft.wrap(injection, copy.deepcopy(base))
    adapted.save_pretrained(folder)
    adapted.merge_adapter()

    def merge() -> Run:
        adapted.unmerge_adapter()
        return adapted.merge_adapter

    return {
        "save": lambda: partial(adapted.save_pretrained, folder),
        "load": lambda: partial(PeftModel.from_pretrained, copy.deepcopy(base), folder),
        "merge": merge,
    }
