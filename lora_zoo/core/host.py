"""Hosts: the only place that knows how a layer stores a matrix and applies one.

Shapes: O out, I in, R rank; x is (..., I) for dense layers, (...) of token ids for embeddings and
(N, channels, *space) for convolutions.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Bias = Callable[[Tensor], Tensor]
"""A layer's own bias (O,) -> the effective one."""
Rows = slice | torch.Tensor
"""A slice where the rows are contiguous, else their numbers, a LongTensor on the CPU."""
EVERY = slice(None)


class Host(ABC):
    """One matrix W (O, I) inside a layer's stored tensor: all of its rows, or the `part` that is adapted."""

    kind: ClassVar[str]
    conventional_inits: ClassVar[Mapping[str, str]] = {}
    """An init's name -> what this kind of layer conventionally uses instead."""
    dense: ClassVar[bool] = False
    """True for a plain product with W: y = x Wᵀ + bias."""
    linear: ClassVar[bool] = False
    """True if `all-linear` means it."""
    transposed: bool = False
    """True where W is stored as (I, O), which PEFT calls `fan_in_fan_out`."""
    peft_layer: ClassVar[str] = ""
    """PEFT's layout of factors on this layer (linear, embedding, convolution); "" where it adapts none."""
    sees_input: ClassVar[bool] = True
    """True if an adapter on it is given the layer's input, which dropout acts on."""

    stores_codes: ClassVar[bool] = False
    """True where the layer is quantised: W is read from codes, which neither kernels nor gradients reach."""
    unmergeable: ClassVar[str] = ""
    """The reason why no merge can write into such a layer ("it stores codes"), "" where `write` does."""
    coder: Any = None
    """Makes the layer's codes anew (`hosts.coders.Coder`); None where that cannot be done."""
    can_have_bias: ClassVar[bool] = False
    """True if the layer has a `bias` that its forward pass adds, or would add where it is None."""

    branch_dtype: torch.dtype | None = None
    """The dtype of a kernel's products of the adapter's branch, where the layer and x are bfloat16 and the
    factors float32; None: bfloat16 where the device multiplies it, else float32."""

    def __init__(self, layer: nn.Module, part: Rows = EVERY) -> None:
        self.layer, self.part = layer, part

    @abstractmethod
    def tensor(self) -> Tensor:
        """The frozen tensor that the layer stores."""

    @abstractmethod
    def view(self, stored: Tensor) -> Tensor:
        """A tensor in the layer's own layout as one matrix of all rows; a view of contiguous memory."""

    @property
    def sealed_bias(self) -> str:
        """The name of a bias that the module adds out of an adapter's reach, "" where there is none."""
        return ""

    @property
    def own_bias(self) -> Tensor | None:
        """The frozen bias (O,) of the adapted rows that an adapter can change, None where there is none."""
        return None

    @property
    def whole(self) -> bool:
        """True if all rows are adapted."""
        return isinstance(self.part, slice) and self.part == EVERY

    def read(self, stored: Tensor) -> Tensor:
        """W (O, I) as a tensor in the layer's own layout holds it."""
        return self.view(stored) if self.whole else self.view(stored)[self.part]

    def write(self, stored: Tensor, W_OI: Tensor) -> None:
        """Put `W_OI` into contiguous `stored`, in place: the tensor that a merge leaves in the layer.

        A layer type whose `view` is no view of `stored` (a scaled weight, say) defines this, or is
        `unmergeable`.
        """
        self.view(stored)[self.part] = W_OI.to(stored.dtype)

    def matrix(self) -> Tensor:
        """The frozen W (O, I).

        Outside of passes, processes that have divided the base (fsdp=true) gather it, all at the same time.
        """
        stored = self.tensor()
        gather = getattr(stored, "full_tensor", None)
        return self.read(stored if gather is None else gather())

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        O, I = self.matrix().shape
        return O, I

    @property
    def like(self) -> Tensor:
        """A tensor of W's dtype and device, for new ones that shall be like it; its values mean nothing."""
        return self.tensor()


class LayerHost(Host):
    """A layer that is called as `layer(x)`: its output is computed anew around the adapted matrix."""

    known: Tensor | None = None

    @classmethod
    @abstractmethod
    def accepts(cls, layer: nn.Module) -> bool: ...

    def tensor(self) -> Tensor:
        return self.layer.weight  # type: ignore[return-value]

    @property
    def replaced(self) -> bool:
        """True if the layer has a `forward` of its own (accelerate's), which alone knows what it does."""
        return "forward" in vars(self.layer)

    @abstractmethod
    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        """The bias-free output (..., O) if the matrix were `W_OI`."""

    def product(self, x: Tensor) -> Tensor:
        """The frozen layer's own bias-free output (..., O)."""
        return self.times(x, self.matrix())

    def low_rank(self, x: Tensor, B_OR: Tensor, A_RI: Tensor) -> Tensor:
        """The bias-free output (..., O) of the product B A, by two thin products."""
        return F.linear(self.times(x, A_RI), B_OR)

    @property
    def own_bias(self) -> Tensor | None:
        bias = getattr(self.layer, "bias", None)
        return None if bias is None else self.rows_of(bias)

    def plus_bias(self, y: Tensor, bias: Bias | None = None) -> Tensor:
        """`y` plus the layer's own bias, or what `bias` makes of it (of zeros, where there is none)."""
        b_O = self.own_bias
        if bias:
            b_O = bias(self.like.new_zeros(self.shape[:1]) if b_O is None else b_O)
        return y if b_O is None else y + self.rows(b_O).to(y.dtype)

    def rows(self, v_O: Tensor) -> Tensor:
        """`v_O` shaped to scale an output (..., O)."""
        return v_O

    def dropped(self, x: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        """The input of the adapter's branch under dropout."""
        return dropout(x)

    def apply(self, x: Tensor, W_OI: Tensor, bias: Bias | None = None) -> Tensor:
        """The output, bias included, as if the matrix were `W_OI` and the bias what `bias` makes of it."""
        return self.plus_bias(self.times(x, W_OI), bias)

    def rows_of(self, y: Tensor) -> Tensor:
        """The adapted rows' entries of the whole layer's output (..., all rows)."""
        return y if self.whole else y[..., self.part]

    def base(self, x: Tensor) -> Tensor:
        """The frozen layer's own output, of the adapted rows."""
        return self.rows_of(self.layer.forward(x)) if self.known is None else self.known

    def with_output(self, y: Tensor) -> Self:
        """A copy of this host that knows the frozen layer's whole output `y`."""
        return self.knowing(self.rows_of(y))

    def knowing(self, y: Tensor) -> Self:
        """A copy of this host that knows the frozen layer's output `y` of the adapted rows."""
        twin = copy.copy(self)
        twin.known = y
        return twin
