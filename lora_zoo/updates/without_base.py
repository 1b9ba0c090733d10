"""Read adapters without their base's weights: from the shapes in their files, or from its configuration.

They are injected into models of the base's shapes, whose weights are one zero each, expanded to the shape:
they cost no memory, and adapters whose ΔW is a product of factors never ask for W.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_zoo.formats.description import DESCRIPTION, WEIGHTS, read_description
from lora_zoo.formats.peft.read import is_peft, read_peft, saved_by
from lora_zoo.formats.safe_files import tensors_in
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.models.base import base_of
from lora_zoo.models.loading import outline


class NeedsBase(ValueError):
    """The ΔW of this adapter is not known without the weights of its base."""


def model_without_weights(folder: Path, model: str | None, enable: Sequence[str]) -> nn.Module:
    """A model without weights: from the shapes of the factors, or from the base's configuration."""
    part = bool(enable) and folder.is_file()  # a part of a fused layer lacks the layer's shape
    shapes = None if model or part else _shapes(folder)
    if shapes is not None:
        return meta_model(*shapes)
    try:
        about = base_of(folder, model)
        return empty_model(outline(about.model, about.auto_class, about.head))
    except ValueError as mistake:
        raise NeedsBase(f"{folder}: its tensors do not tell the shapes of its matrices") from mistake


def holds_base(folder: Path) -> bool:
    """True if the files hold tensors that the adapter does not train: the base's own, most likely."""
    if folder.is_file():
        tensors = tensors_in(folder)
        factors = {name for name in tensors if name.endswith((".lora_A", ".lora_B"))}
        adapted = tuple(f"{name.rpartition('.')[0]}." for name in factors)
        return any(name.startswith(adapted) for name in tensors.keys() - factors)
    if (folder / DESCRIPTION).is_file() or not is_peft(folder):
        return False
    saved, rest = read_peft(folder)
    wanted = saved.config.get("modules_to_save") or []
    return any(saved_by(name, wanted) is None for name in rest)


def _shapes(folder: Path) -> tuple[dict[str, tuple[int, int]], dict[str, Tensor]] | None:
    """(O, I) of every adapted matrix and the tensors beside the factors; None where the files lack shapes."""
    if folder.is_file():
        pairs, rest = _by_layer(tensors_in(folder), "lora_B", "lora_A")
    elif is_peft(folder) and not (folder / DESCRIPTION).is_file():
        saved, rest = read_peft(folder)
        short = {
            f"{m}.{name.removesuffix('.weight')}": t
            for m, own in saved.modules.items()
            for name, t in own.items()
        }
        pairs, _ = _by_layer(short, "lora_B", "lora_A")
        within = saved.config.get("target_parameters") or any(
            ".base_layer." in name for name in saved.modules
        )
        if within or saved.shared or pairs.keys() != saved.modules.keys():
            return None
    else:
        description = read_description(folder)
        pairs, rest = _by_layer(tensors_in(folder / WEIGHTS), "B_OR", "A_RI")
        rest = {name: tensor for name, tensor in rest.items() if name in description["in_full"]}
        if pairs.keys() != set(description["target_modules"]) or rest.keys() != set(description["in_full"]):
            return None  # a seed restores what is not there, and tied parameters are stored once
    if any(B.ndim != 2 or A.ndim != 2 or B.shape[1] != len(A) for B, A in pairs.values()):
        return None  # a convolution's, or the parts of a fused layer
    return {name: (len(B), A.shape[1]) for name, (B, A) in pairs.items()}, rest


def _by_layer(
    tensors: Mapping[str, Tensor], b: str, a: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The factors (B, A) of each layer that has both, and the other tensors."""
    layers = {name.removesuffix(f".{b}") for name in tensors if name.endswith(f".{b}")}
    pairs = {n: (tensors[f"{n}.{b}"], tensors[f"{n}.{a}"]) for n in layers if f"{n}.{a}" in tensors}
    own = {f"{name}.{last}" for name in pairs for last in (a, b)}
    return pairs, {name: tensor for name, tensor in tensors.items() if name not in own}


def empty_model(model: nn.Module) -> nn.Module:
    """`model`, from torch's meta device, with zeros that take no memory for weights, in place; ties stay."""
    zeros: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            zeros.setdefault(parameter, _zeros(parameter.shape, parameter.dtype))
            setattr(module, name, zeros[parameter])
    return model


def meta_model(layers: Mapping[str, tuple[int, int]], others: Mapping[str, Tensor]) -> nn.Module:
    """A model of linear layers (O, I) by name, and of parameters with the shapes of `others`.

    ValueError where a name would lie within a layer's.
    """
    root = nn.Module()
    for name, (O, I) in layers.items():
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.in_features, layer.out_features, layer.weight = I, O, _zeros((O, I), torch.float32)
        _put(root, name, layer)
    for name, tensor in others.items():
        if name not in base_parameters(root):
            _put(root, name, _zeros(tensor.shape, torch.float32))
    return root


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)


def _put(root: nn.Module, name: str, thing: nn.Module | nn.Parameter) -> None:
    *around, last = name.split(".")
    for part in around:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if last in root._modules or root._parameters.get(last) is not None:
        raise ValueError(f"{name} is there twice")
    setattr(root, last, thing)
