"""Adapters that PEFT saved: what their files say, and which variant here computes the same."""

import re
from pathlib import Path

from torch import Tensor, nn

from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.peft.experts import resolve
from lora_zoo.formats.peft.forms import PREFIX, Saved, Unpacked, reader_of
from lora_zoo.formats.peft.layers import NAMES
from lora_zoo.formats.peft.options import check_options
from lora_zoo.formats.peft.patterns import means
from lora_zoo.formats.peft.write import CONFIG, HEADS, NOTHING
from lora_zoo.formats.safe_files import object_in, tensors_in
from lora_zoo.inject.base_model import base_buffers, base_parameters
from lora_zoo.inject.matrices import places
from lora_zoo.inject.plan import InjectionPlan, Plan, check

FILES = ("adapter_model.safetensors", "adapter_model.bin")
_TENSOR = re.compile(rf"(?P<module>.+)\.(?P<name>{'|'.join(map(re.escape, NAMES))})")


def is_peft(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_peft(folder: Path) -> tuple[Saved, dict[str, Tensor]]:
    """What a PEFT folder says of adapted modules, and its other tensors by the model's names.

    Raises FileNotFoundError or ValueError, each naming the file.
    """
    path = folder / CONFIG
    config = object_in(path)
    try:
        check_options(config)
    except ValueError as mistake:
        raise ValueError(f"{path}: {mistake}") from None
    weights = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} holds no weights: {' or '.join(FILES)} is expected there")
    saved, rest = Saved(weights, config, {}), {}
    for key, tensor in tensors_in(weights).items():
        if not key.startswith("base_model."):
            raise ValueError(f"{weights}: {key} does not start with {PREFIX}")
        name = key.removeprefix(PREFIX)
        if match := _TENSOR.fullmatch(name):
            saved.modules.setdefault(match["module"], {})[match["name"]] = tensor
        elif key.startswith(PREFIX):
            rest[name] = tensor
        else:
            saved.shared[key.removeprefix("base_model.")] = tensor
    return saved, rest


def from_peft(model: nn.Module, folder: Path) -> tuple[InjectionPlan, dict[str, Tensor], bool]:
    """What to inject into `model`, its tensors by our names, and whether start factors come from the base.

    Raises ValueError, naming file and tensor, for what does not fit the model or what we do not compute.
    """
    saved, rest = read_peft(folder)
    try:
        _check_places(model, saved)
        cls, form = reader_of(saved.config)
        if extra := sorted(saved.shared.keys() - set(form.shared)):
            raise ValueError(f"base_model.{extra[0]} is not expected")
        unpacked = form.from_peft(saved, model) if saved.modules else Unpacked({}, {}, [], {})
        fully_trained = _trained(model, saved, rest)
    except ValueError as mistake:
        raise ValueError(f"{saved.file}: {mistake}") from None
    if not unpacked.places:
        cls = VARIANTS.find("head_only")
        return InjectionPlan(cls, Plan([], list(fully_trained)), check(cls, {}), {}), fully_trained, False
    plan = Plan(unpacked.places, list(fully_trained))
    ready = InjectionPlan(cls, plan, check(cls, unpacked.hyper), unpacked.patterns)
    return ready, unpacked.state | fully_trained, unpacked.started


def _check_places(model: nn.Module, saved: Saved) -> None:
    """ValueError for tensors of a module that the model has not, and for a target without tensors."""
    known = {place.name: place for place in places(model) if not place.whole}
    experts = resolve(saved, known)
    for module in saved.modules.keys() - experts.keys():
        if module not in known:
            raise ValueError(
                f"{module} is adapted, but this model has no such layer: it belongs to another model"
            )
    if saved.config.get("target_modules") == NOTHING:
        return
    for name in known:
        if name not in saved.modules and means(saved.config, name):
            raise ValueError(f"{name} is among target_modules, but its tensors are missing")


def _trained(model: nn.Module, saved: Saved, rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that `modules_to_save` trains. ValueError for a tensor that fits nowhere."""
    every, buffers = base_parameters(model), base_buffers(model)
    wanted = saved.config.get("modules_to_save") or []
    found: dict[str, dict[str, Tensor]] = {}
    same: dict[str, bool] = {}
    for key, tensor in rest.items():
        name = key.replace(".base_layer.", ".")
        there = every.get(name, buffers.get(name))
        if there is None:
            raise ValueError(f"{name} is not expected")
        if there.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(there.shape)}")
        equal = bool((there.detach().cpu().to(tensor.dtype) == tensor).all())
        module = saved_by(name, wanted)
        if not equal and (module is None or name in buffers):
            raise ValueError(f"{name} is not the base's own, but no module of modules_to_save trains it")
        if module is not None and name in every:
            found.setdefault(module, {})[name] = tensor
            same[module] = same.get(module, True) and equal
    for name in every:
        module = saved_by(name, wanted)
        if module is not None and name not in found.get(module, {}):
            raise ValueError(f"{name} is missing, and {module} is among modules_to_save")
    heads = HEADS.get(str(saved.config.get("task_type")), ())
    kept = [own for module, own in found.items() if not (same[module] and module.endswith(heads))]
    return {name: tensor for own in kept for name, tensor in own.items()}


def saved_by(parameter: str, wanted: list[str]) -> str | None:
    """The outermost module around a parameter whose name ends with one of `wanted`, as in PEFT."""
    parts = parameter.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((module for module in around if any(module.endswith(one) for one in wanted)), None)
