"""Hosts: the only place that knows how a kind of layer stores its matrix and applies one.

Shapes: O out, I in, R rank; x is (..., I) for dense layers and (...) of token ids for embeddings.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Host(ABC):
    """One layer seen as a matrix W (O, I) acting on the input's last axis."""

    starts: ClassVar[Mapping[str, str]] = {}
    """An init's name -> what this kind of layer conventionally uses in its place."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    @classmethod
    @abstractmethod
    def accepts(cls, layer: nn.Module) -> bool: ...

    @abstractmethod
    def matrix(self) -> Tensor:
        """The layer's weight as (O, I), a view."""

    @abstractmethod
    def stored(self, W_OI: Tensor) -> Tensor:
        """`W_OI` in the layer's own layout."""

    @abstractmethod
    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        """The bias-free output (..., O) if the layer's matrix were `W_OI`."""

    def low_rank(self, x: Tensor, B_OR: Tensor, A_RI: Tensor) -> Tensor:
        """The bias-free output (..., O) of the product B A, by two thin products."""
        return F.linear(self.times(x, A_RI), B_OR)

    def plus_bias(self, y: Tensor) -> Tensor:
        bias = getattr(self.layer, "bias", None)
        return y if bias is None else y + bias.to(y.dtype)

    def rows(self, v_O: Tensor) -> Tensor:
        """`v_O` shaped to scale an output (..., O)."""
        return v_O

    def dropped(self, x: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        """The input of the adapter's branch under dropout."""
        return dropout(x)

    def apply(self, x: Tensor, W_OI: Tensor) -> Tensor:
        """The layer's output, bias included, as if its matrix were `W_OI`."""
        return self.plus_bias(self.times(x, W_OI))

    def base(self, x: Tensor) -> Tensor:
        """The frozen layer's own output."""
        return self.layer(x)


class LinearHost(Host):
    """`torch.nn.Linear`: stored as (O, I)."""

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        # Exact type: a subclass (quantised, or bypassed by a fused kernel) needs a host of its own.
        return type(layer) is nn.Linear and layer.weight.is_floating_point()

    def matrix(self) -> Tensor:
        return self.layer.weight  # type: ignore[return-value]

    def stored(self, W_OI: Tensor) -> Tensor:
        return W_OI

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        return F.linear(x.to(W_OI.dtype), W_OI)


class Conv1DHost(LinearHost):
    """transformers' `Conv1D` (GPT-2): a linear layer stored transposed, as (I, O)."""

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")

    def matrix(self) -> Tensor:
        return self.layer.weight.T  # type: ignore[return-value]

    def stored(self, W_OI: Tensor) -> Tensor:
        return W_OI.T.contiguous()


class EmbeddingHost(Host):
    """`torch.nn.Embedding`, a linear map of one-hot tokens: stored as (I, O) = (vocabulary, features)."""

    # loralib and PEFT: on an embedding A is zero and B standard normal.
    starts: ClassVar[Mapping[str, str]] = {"kaiming": "embedding"}

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer) is nn.Embedding and layer.max_norm is None

    def matrix(self) -> Tensor:
        return self.layer.weight.T  # type: ignore[return-value]

    def stored(self, W_OI: Tensor) -> Tensor:
        return W_OI.T.contiguous()

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        return F.embedding(x, W_OI.T)

    def dropped(self, x: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        return x  # token ids cannot be dropped to zero


HOSTS: tuple[type[Host], ...] = (LinearHost, Conv1DHost, EmbeddingHost)
DENSE: tuple[type[Host], ...] = (LinearHost, Conv1DHost)


def find_host(layer: nn.Module, kinds: tuple[type[Host], ...] = HOSTS) -> Host | None:
    """The host of `layer`, or None where no kind accepts it."""
    return next((kind(layer) for kind in kinds if kind.accepts(layer)), None)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an adapter's tensors on a base of `dtype`: float32, or float64 on a float64 base."""
    return torch.promote_types(dtype, torch.float32)
