"""The components of low-rank factors: which of them live, cutting to these, masks, and their Gram matrix.

Shapes: R rank, K kept components, or the side of a factor.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dtypes import at_least_float32


def inverse_gram(X_RK: Tensor, damping: float) -> Tensor:
    """(X Xᵀ + damping 1)⁻¹ (R, R), the Gram matrix's inverse; of a singular one the pseudoinverse."""
    wide_RK = X_RK.to(at_least_float32(X_RK.dtype))
    gram_RR = wide_RK @ wide_RK.T
    gram_RR.diagonal().add_(damping)
    return torch.linalg.pinv(gram_RR, hermitian=True).to(X_RK.dtype)


@torch.no_grad()
def cut(adapter: Adapter, index_K: Tensor) -> None:
    """Keep these components on every axis that the suffix of a tensor's name calls R, in place."""
    for name, tensor in tensors_of(adapter).items():
        smaller = _selected(name, tensor.detach(), index_K).contiguous()
        trains = isinstance(tensor, nn.Parameter)
        setattr(adapter, name, nn.Parameter(smaller, tensor.requires_grad) if trains else smaller)


@torch.no_grad()
def inherit(adapter: Adapter, tensors: Mapping[str, Tensor], index_K: Tensor) -> None:
    """Copy these components of another adapter's `tensors` to the first places, in place.

    Tensors without components are copied whole; further components stay as they are.
    """
    for name, own in tensors_of(adapter).items():
        kept = _selected(name, tensors[name], index_K)
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
                    for axis in _axes(name):
                        own.index_fill_(axis, gone.to(own.device), 0)
            yield
        finally:
            for own, before in held:
                own.copy_(before)


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter's own, trained or not, by the names of its attributes."""
    every = {**adapter._parameters, **adapter._buffers}
    return {name: tensor for name, tensor in every.items() if tensor is not None}


def _axes(name: str) -> list[int]:
    return [axis for axis, letter in enumerate(name.rpartition("_")[2]) if letter == "R"]


def _selected(name: str, tensor: Tensor, index_K: Tensor) -> Tensor:
    for axis in _axes(name):
        tensor = tensor.index_select(axis, index_K.to(tensor.device))
    return tensor


def alive(mask_R: Tensor) -> Tensor:
    """The indices where `mask_R` is true; the first where it is so nowhere, as an adapter has a rank."""
    return mask_R.nonzero()[:, 0] if mask_R.any() else mask_R.new_zeros(1, dtype=torch.int64)
