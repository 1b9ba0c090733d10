"""Load the adapters of several runs into one base."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_zoo.formats.native import load_adapter
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.models import dequantize
from lora_zoo.models.base import Base, adapter_in, base_of
from lora_zoo.models.loading import Loaded, load_model
from lora_zoo.models.merging import check_heads, refuse_unmergeable


def named_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """Name -> run; an adapter is called like its run's folder, the second of one name `NAME-2`."""
    found: dict[str, Path] = {}
    for run in runs:
        whole = run.resolve()
        own = re.sub(r"[^\w-]+", "-", whole.parent.name if whole.name == "adapter" else whole.name) or "run"
        name, number = own, 1
        while name in found:
            number += 1
            name = f"{own}-{number}"
        found[name] = run
    return found


def common_base(runs: Mapping[str, Path], model: str | None, trust_remote_code: bool) -> Base:
    """The base of all runs. ValueError where they differ, FileNotFoundError where there is no adapter."""
    bases = {
        name: base_of(adapter_in(run), model, trust_remote_code=trust_remote_code)
        for name, run in runs.items()
    }
    (first, base), *others = bases.items()
    for name, other in others:
        for what, mine, its in (
            ("base", _place(base), _place(other)),
            ("class", base.auto_class, other.auto_class),
            ("head", base.head, other.head),
            ("unit of labels", base.unit, other.unit),
        ):
            if mine != its:
                raise ValueError(
                    f"{first} and {name} cannot be composed: they have another {what}, {mine} and {its}"
                )
    return base


def _place(base: Base) -> tuple[str, ...]:
    """The base's name or folder, its revision and how it is quantised, as far as they are given."""
    of = base.model
    return (of.path, *filter(None, (of.revision, of.quantization)))


def load_adapters_of(base: Base, runs: Mapping[str, Path], tokenizer: Any) -> Loaded:
    """The base in plain layers with the adapters of the runs, by name, none of them merged.

    ValueError where one does not fit it, or is no function of the weight.
    """
    if dequantize.scheme_of(base.model):
        loaded = dequantize.load_dequantised(base, tokenizer)
    else:
        loaded = load_model(base.model, base.auto_class, base.head, tokenizer, seed=0)
    for name, run in runs.items():
        injection = load_adapter(loaded.model, adapter_in(run), name=name)
        injection.variant.require_weight("composed")
        refuse_unmergeable(injection)
    trained = [name for own in adapters_of(loaded.model).values() for name in own.trained]
    check_heads(loaded.new_modules, trained, next(iter(runs.values())))
    return loaded
