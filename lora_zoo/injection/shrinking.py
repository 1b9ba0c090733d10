"""Make adapters smaller once they are trained: each keeps some of its components, and states its new rank."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.errors import unknown


def shrink(adapters: Mapping[str, Adapter], kept: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Leave the components `kept` (matrix -> indices, ascending) in these adapters, in place.

    Returns hyperparameter -> matrix -> its new value, of the matrices that are smaller now. ValueError,
    before anything is changed, for an unknown matrix or wrong indices.
    """
    for name, index_K in kept.items():
        if name not in adapters:
            raise ValueError(unknown("adapted matrix", name, adapters))
        check_index(name, index_K, adapters[name])
    found: dict[str, dict[str, Any]] = {}
    for name, index_K in kept.items():
        if len(index_K) < adapters[name].components():
            for key, value in adapters[name].shrink(index_K).items():
                found.setdefault(key, {})[name] = value
    return found


def check_index(name: str, index_K: Tensor, adapter: Adapter) -> None:
    """Raise ValueError unless `index_K` ascends within the adapter's components and names at least one."""
    R = adapter.components()
    if not R:
        raise ValueError(f"{adapter.name} at {name} has no components that could be dropped one by one")
    listed = index_K.tolist() if index_K.ndim == 1 and index_K.dtype == torch.int64 else []
    if not listed or listed != sorted({*listed}) or not 0 <= listed[0] <= listed[-1] < R:
        raise ValueError(
            f"{name}: the components to keep must be ascending numbers from 0 to {R - 1}, at least one; "
            f"got {index_K.tolist()}"
        )
