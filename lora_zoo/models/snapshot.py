"""Snapshot of a loaded model: the attributes of every module, and a hash of all numbers.

`restore` undoes changes of the model's structure (wrappers, hooks, flags, configurations, devices); `intact`
then checks by the hash that no parameter or buffer has changed.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

CONTAINERS = (dict, set, list)


class Snapshot:
    """The state of `model`: its structure is copied, its numbers are hashed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = [_Attributes(module) for module in model.modules()]
        self.configs = [(config, _copied(vars(config))) for config in _configs(model)]
        self.tensors = {id(t): (t, t.device, t.requires_grad) for _, t in _tensors(model)}
        self.digest = digest(model)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the structure and the tensors' devices; values stay as they are now."""
        for module in self.modules:
            module.restore()
        for config, attributes in self.configs:
            vars(config).clear()
            vars(config).update(_copied(attributes))
        for tensor, device, required_grad in self.tensors.values():
            tensor.grad = None
            if tensor.device != device:
                tensor.data = tensor.data.to(device)
            if tensor.is_leaf:
                tensor.requires_grad_(required_grad)

    def intact(self) -> bool:
        """True if every parameter and buffer has the name, shape, type and value that it had."""
        return digest(self.model) == self.digest


class _Attributes:
    """A module's class and attributes; containers are kept with what they held."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.cls, self.attributes = module, type(module), dict(vars(module))
        self.held = [(v, copy.copy(v)) for v in self.attributes.values() if isinstance(v, CONTAINERS)]

    def restore(self) -> None:
        self.module.__class__ = self.cls
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for container, content in self.held:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)


def can_be_shared(model: nn.Module) -> bool:
    """True if the model holds plain tensors alone: quantisers' tensors may hold more than is hashed."""
    return all(type(t) in (nn.Parameter, Tensor) and t.layout == torch.strided for _, t in _tensors(model))


def digest(model: nn.Module) -> str:
    """128 bits of every parameter, buffer and other tensor of the modules: name, type, shape, value."""
    found = xxhash.xxh3_128()
    seen: dict[int, str] = {}
    for name, tensor in _tensors(model):
        tied_to = seen.setdefault(id(tensor), name)
        hashed(found, tensor, name, tied_to, values=tied_to == name)
    return found.hexdigest()


def hashed(found: xxhash.xxh3_128, tensor: Tensor, *about: Any, values: bool = True) -> None:
    """Add a tensor to the hash: what is said `about` it, its type and shape and, if asked, its `values`."""
    found.update(repr((*about, tensor.dtype, tuple(tensor.shape), tensor.stride())).encode())
    if values and tensor.numel():
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().data)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tied tensors come under each of their names."""
    for prefix, module in model.named_modules():
        own = {**module._parameters, **module._buffers, **vars(module)}
        yield from ((f"{prefix}.{name}", value) for name, value in own.items() if isinstance(value, Tensor))


def _configs(model: nn.Module) -> Iterator[Any]:
    """transformers' configurations, of generation too, each once, with those inside of others."""
    seen: set[int] = set()

    def walk(values: Any) -> Iterator[Any]:
        for value in values:
            if hasattr(value, "to_dict") and hasattr(value, "__dict__") and id(value) not in seen:
                seen.add(id(value))
                yield value
                yield from walk(vars(value).values())

    for module in model.modules():
        yield from walk(v for v in vars(module).values() if not isinstance(v, (Tensor, nn.Module)))


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a configuration, copied, but for those that are configurations themselves."""
    return {k: v if hasattr(v, "to_dict") else copy.deepcopy(v) for k, v in attributes.items()}
