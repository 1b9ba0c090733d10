"""The components of an adapter's tensors: axes that the suffix of a tensor's name calls R.

Shapes: R rank, K some of the components.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lora_zoo.core.adapter import Adapter


@torch.no_grad()
def inherit(adapter: Adapter, tensors: Mapping[str, Tensor], index_K: Tensor) -> None:
    """Copy these components of another adapter's `tensors` to the first places, in place.

    Tensors without components are copied whole; further components stay as they are.
    """
    for name, own in tensors_of(adapter).items():
        kept = selected(name, tensors[name], index_K)
        own[tuple(slice(size) for size in kept.shape)] = kept


@contextlib.contextmanager
def masked(adapters: Mapping[str, Adapter], masks_R: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, components where an adapter's mask is false are zero; tensors are put back to the bit."""
    with torch.no_grad():
        held = [(own, own.clone()) for name in masks_R for own in tensors_of(adapters[name]).values()]
        try:
            for matrix, mask_R in masks_R.items():
                gone = (~mask_R).nonzero()[:, 0]
                for name, own in tensors_of(adapters[matrix]).items():
                    for axis in component_axes(name):
                        own.index_fill_(axis, gone.to(own.device), 0)
            yield
        finally:
            for own, before in held:
                own.copy_(before)


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter's own, trained or not, by the names of its attributes."""
    every = {**adapter._parameters, **adapter._buffers}
    return {name: tensor for name, tensor in every.items() if tensor is not None}


def component_axes(name: str) -> list[int]:
    """The axes that the suffix of a tensor's name calls R."""
    return [axis for axis, letter in enumerate(name.rpartition("_")[2]) if letter == "R"]


def selected(name: str, tensor: Tensor, index_K: Tensor) -> Tensor:
    """These components of a tensor of this name; all of one that has none."""
    for axis in component_axes(name):
        tensor = tensor.index_select(axis, index_K.to(tensor.device))
    return tensor
