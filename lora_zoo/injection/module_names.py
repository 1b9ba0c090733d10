"""Names of modules without those that only wrap another one: torch.compile, DataParallel, FSDP, averaging."""

import functools
from collections.abc import Iterable
from typing import TypeVar

from torch import nn

T = TypeVar("T")
CHILDREN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names of a wrapper's only child that no other module has."""
TYPES = ("DataParallel", "DistributedDataParallel", "AveragedModel")
"""Wrappers that call their child `module`, as another class might."""


def inside(module: nn.Module) -> str:
    """The name of the child that `module` only wraps, "" for any other module."""
    if not module._modules:
        return ""
    if child := next((name for name in CHILDREN if name in module._modules), ""):
        return child
    return "module" if "module" in module._modules and _wraps(type(module).__mro__) else ""


@functools.cache
def _wraps(classes: tuple[type, ...]) -> bool:
    return any(cls.__name__ in TYPES for cls in classes)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that is left without all wrappers around it."""
    while child := inside(module):
        module = module._modules[child]  # type: ignore[assignment]
    return module


def base_name(name: str, among: Iterable[str]) -> str:
    """`name`, which a file gives, as the base model says it; `among` are the names of its top modules."""
    parts = [part for part in name.split(".") if part not in CHILDREN]
    return ".".join(parts[1:] if parts[:1] == ["module"] and "module" not in among else parts)
