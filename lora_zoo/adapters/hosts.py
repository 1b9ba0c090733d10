"""Hosts: the only place that knows how a layer stores a matrix and applies one.

Shapes: O out, I in, R rank; x is (..., I) for dense layers, (...) of token ids for embeddings and
(N, channels, *space) for convolutions.
"""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lora_zoo.adapters.layouts import Rows

EVERY = slice(None)


class Host(ABC):
    """One matrix W (O, I) inside a layer's stored tensor: all of its rows, or the `part` that is adapted."""

    kind: ClassVar[str]
    starts: ClassVar[Mapping[str, str]] = {}
    """An init's name -> what this kind of layer conventionally uses in its place."""
    sees_input: ClassVar[bool] = True
    """Whether an adapter on it is given the layer's input, which is what dropout acts on."""

    def __init__(self, layer: nn.Module, part: Rows = EVERY) -> None:
        self.layer, self.part = layer, part

    @abstractmethod
    def tensor(self) -> Tensor:
        """The frozen tensor that the layer stores."""

    @abstractmethod
    def view(self, stored: Tensor) -> Tensor:
        """A tensor in the layer's own layout as one matrix of all rows; a view of contiguous memory."""

    @property
    def whole(self) -> bool:
        """Whether all rows are adapted."""
        return isinstance(self.part, slice) and self.part == EVERY

    def read(self, stored: Tensor) -> Tensor:
        """W (O, I) as a tensor in the layer's own layout holds it."""
        return self.view(stored) if self.whole else self.view(stored)[self.part]

    def write(self, stored: Tensor, W_OI: Tensor) -> None:
        """Put `W_OI` into contiguous `stored`, in place."""
        self.view(stored)[self.part] = W_OI.to(stored.dtype)

    def matrix(self) -> Tensor:
        """The frozen W (O, I)."""
        return self.read(self.tensor())


class LayerHost(Host):
    """A layer that is called as `layer(x)`: its output is computed anew around the adapted matrix."""

    known: Tensor | None = None

    @classmethod
    @abstractmethod
    def accepts(cls, layer: nn.Module) -> bool: ...

    def tensor(self) -> Tensor:
        return self.layer.weight  # type: ignore[return-value]

    @abstractmethod
    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        """The bias-free output (..., O) if the matrix were `W_OI`."""

    def low_rank(self, x: Tensor, B_OR: Tensor, A_RI: Tensor) -> Tensor:
        """The bias-free output (..., O) of the product B A, by two thin products."""
        return F.linear(self.times(x, A_RI), B_OR)

    def plus_bias(self, y: Tensor) -> Tensor:
        bias = getattr(self.layer, "bias", None)
        return y if bias is None else y + self.rows(self.rows_of(bias)).to(y.dtype)

    def rows(self, v_O: Tensor) -> Tensor:
        """`v_O` shaped to scale an output (..., O)."""
        return v_O

    def dropped(self, x: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        """The input of the adapter's branch under dropout."""
        return dropout(x)

    def apply(self, x: Tensor, W_OI: Tensor) -> Tensor:
        """The output, bias included, as if the matrix were `W_OI`."""
        return self.plus_bias(self.times(x, W_OI))

    def rows_of(self, y: Tensor) -> Tensor:
        """The adapted rows' entries of the whole layer's output (..., all rows)."""
        return y if self.whole else y[..., self.part]

    def base(self, x: Tensor) -> Tensor:
        """The frozen layer's own output, of the adapted rows."""
        return self.rows_of(self.layer(x)) if self.known is None else self.known

    def given(self, y: Tensor) -> Self:
        """This host where the frozen layer's whole output `y` is known already."""
        twin = copy.copy(self)
        twin.known = self.rows_of(y)
        return twin


class LinearHost(LayerHost):
    """`torch.nn.Linear`: stored as (O, I)."""

    kind = "linear"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        # Exact type: a subclass (quantised, or bypassed by a fused kernel) needs a host of its own.
        plain = type(layer) is nn.Linear or type(layer).__name__ == "FalconLinear"
        return plain and layer.weight.is_floating_point()  # type: ignore[operator]

    def view(self, stored: Tensor) -> Tensor:
        return stored

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        return F.linear(x.to(W_OI.dtype), W_OI)


class Conv1DHost(LinearHost):
    """transformers' `Conv1D` (GPT-2): a linear layer stored transposed, as (I, O)."""

    kind = "transformers Conv1D"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")

    def view(self, stored: Tensor) -> Tensor:
        return stored.T


class EmbeddingHost(LayerHost):
    """`torch.nn.Embedding`, a linear map of one-hot tokens: stored as (I, O) = (vocabulary, features)."""

    kind = "embedding"
    # loralib and PEFT: on an embedding A is zero and B standard normal.
    starts: ClassVar[Mapping[str, str]] = {"kaiming": "embedding"}

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer) is nn.Embedding and layer.max_norm is None

    def view(self, stored: Tensor) -> Tensor:
        return stored.T

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        # As in PEFT, a padding token teaches its own column nothing.
        return F.embedding(x, W_OI.T, padding_idx=self.layer.padding_idx)  # type: ignore[arg-type]

    def dropped(self, x: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        return x  # token ids cannot be dropped to zero


class ScaledEmbeddingHost(EmbeddingHost):
    """transformers' `…ScaledWordEmbedding` (Gemma, BART): an embedding times a constant."""

    kind = "scaled embedding"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        named = type(layer).__name__.endswith("ScaledWordEmbedding") and hasattr(layer, "embed_scale")
        return named and len(list(layer.parameters())) == 1

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        return super().times(x, W_OI) * self.layer.embed_scale  # type: ignore[operator]


class ConvHost(LayerHost):
    """`torch.nn.Conv1d/2d/3d`: W (O, I) with I = channels of a group x kernel; grouped and strided too.

    A rank-R update has the layer's own groups: its A (R, I) serves every group, so that it merges.
    """

    kind = "convolution"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def view(self, stored: Tensor) -> Tensor:
        return stored.flatten(1)

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        kernel = W_OI.view(-1, *self.tensor().shape[1:])
        return self.layer._conv_forward(x.to(W_OI.dtype), kernel, None)  # type: ignore[operator]

    def low_rank(self, x: Tensor, B_OR: Tensor, A_RI: Tensor) -> Tensor:
        groups: int = self.layer.groups  # type: ignore[assignment]
        h = self.times(x, A_RI.repeat(groups, 1))
        pointwise = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[self._space()]
        return pointwise(h, self.rows(B_OR), groups=groups)

    def rows(self, v_O: Tensor) -> Tensor:
        return v_O[(..., *[None] * self._space())]

    def _space(self) -> int:
        return self.tensor().ndim - 2


class ParameterHost(Host):
    """A matrix in a parameter that its module reads by itself: nn.MultiheadAttention, stacked experts.

    The module runs as it is, on the effective tensor; W is a matrix (O, I), or one of a stack of them.
    """

    kind = "parameter"
    sees_input = False

    def __init__(
        self,
        layer: nn.Module,
        parameter: str,
        part: Rows = EVERY,
        *,
        expert: int | None = None,
        transposed: bool = False,
    ) -> None:
        super().__init__(layer, part)
        self.parameter, self.expert, self.transposed = parameter, expert, transposed

    def tensor(self) -> Tensor:
        if parametrize.is_parametrized(self.layer, self.parameter):
            return self.layer.parametrizations[self.parameter].original  # type: ignore[index, union-attr]
        return getattr(self.layer, self.parameter)

    def view(self, stored: Tensor) -> Tensor:
        W_OI = stored if self.expert is None else stored[self.expert]
        return W_OI.T if self.transposed else W_OI


HOSTS: tuple[type[LayerHost], ...] = (
    LinearHost,
    Conv1DHost,
    EmbeddingHost,
    ScaledEmbeddingHost,
    ConvHost,
)
DENSE: tuple[type[LayerHost], ...] = (LinearHost, Conv1DHost)
KINDS: tuple[type[Host], ...] = (*HOSTS, ParameterHost)


def find_host(layer: nn.Module, kinds: tuple[type[LayerHost], ...] = HOSTS) -> LayerHost | None:
    """The host of `layer`, or None where no kind accepts it."""
    return next((kind(layer) for kind in kinds if kind.accepts(layer)), None)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an adapter's tensors on a base of `dtype`: float32, or float64 on a float64 base."""
    return torch.promote_types(dtype, torch.float32)


def wide(W: Tensor) -> Tensor:
    """`W` detached, in float32 or wider."""
    return W.detach().to(at_least_float32(W.dtype))


def cast(device: torch.device) -> bool:
    """Whether autocast is on for `device`."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def uncast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, autocast is off: a weight is computed in its tensors' own dtype, whatever x meets."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()
