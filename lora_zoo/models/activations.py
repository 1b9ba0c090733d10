"""Activation memory: the bytes that a forward pass saves for its backward pass."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd saves during `forward()`, each storage once; parameters and buffers are left out.

    Tensors that a graph holds without saving them are not counted.
    """
    held = {storage for storage, _ in _storages(chain(model.parameters(), model.buffers()))}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.update((s, size) for s, size in _storages([tensor]) if s not in held)
        return tensor.detach()  # an output that its own graph held would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # kept until the count is done: no storage is given away meanwhile
    total = sum(saved.values())
    del result
    return total


def _storages(tensors: Iterable[Any]) -> Iterator[tuple[int, int]]:
    for tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):  # made of other tensors: codes and scales, say
            yield from _storages(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        else:
            storage = tensor.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()


@contextlib.contextmanager
def embedded_inputs_learn(model: nn.Module) -> Iterator[None]:
    """Inside, the gradient reaches the model's first layer, as where that is adapted."""

    def learn(_: nn.Module, __: object, y: Tensor | tuple[Tensor, ...]) -> None:
        first = y[0] if isinstance(y, tuple) else y  # some embeddings of images say their grid, too
        if not first.requires_grad:
            first.requires_grad_()

    hook = model.get_input_embeddings().register_forward_hook(learn)  # type: ignore[operator]
    try:
        yield
    finally:
        hook.remove()


__all__ = ["embedded_inputs_learn", "saved_bytes"]
