"""Models with the shapes of a base and without its weights: adapters fit on them and cost no memory.

A weight is one zero, expanded to the shape: adapters whose ΔW is a product of factors never ask for W.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_zoo.injection.base_model import base_parameters


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


__all__ = ["empty_model", "meta_model"]
