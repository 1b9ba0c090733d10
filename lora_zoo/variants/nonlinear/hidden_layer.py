"""Networks of one hidden layer, behind or beside a layer of the model.

Shapes: O out, I in, R the hidden units, H what the network reads (the layer's O outputs, or its I inputs).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.host import LayerHost

Mode = Literal["series", "parallel"]
Activation = Literal["relu", "gelu", "silu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class HiddenLayer(Adapter, ABC):
    """Adds s (U φ(D h + a) + c) to the layer's output; the biases a and c begin at zero."""

    equation = "W' x = y + s (U φ(D h + a) + c), y = W x + b; series: h = y, parallel: h = x"
    pointwise = False
    targets = ("o", "down")

    def __init__(
        self, context: LayerContext, *, rank: int, mode: Mode, activation: Activation, scale: float
    ) -> None:
        super().__init__(context)
        if not 0 < abs(scale) < float("inf"):
            raise ValueError(f"{self.name}: scale must be a number other than 0; got {scale}")
        self.series, self.activation, self.scale = mode == "series", activation, scale
        self.a_R, self.c_O = (nn.Parameter(context.full((n,))) for n in (rank, context.shape[0]))

    @classmethod
    def reads(cls, shape: tuple[int, int], mode: Mode) -> int:
        """H of a matrix (O, I)."""
        return shape[0] if mode == "series" else shape[1]

    @abstractmethod
    def down(self) -> Tensor:
        """D (R, H)."""

    @abstractmethod
    def up(self) -> Tensor:
        """U (O, R)."""

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return "a bottleneck reads vectors, and a layer of images has none" if kind == "convolution" else None

    def branch(self, z_R: Tensor) -> Tensor:
        """The network's output (..., O) from D h (..., R)."""
        hidden_R = ACTIVATIONS[self.activation](z_R + self.a_R)
        return self.scale * F.linear(hidden_R, self.up(), self.c_O)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y, D_RH = host.base(x), self.down()
        z_R = F.linear(y.to(D_RH.dtype), D_RH) if self.series else host.times(x, D_RH)
        return y + self.branch(z_R).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Every unit adds one column, as often as it fires: s (c + Σ_k U_k φ(D_k h + a_k))."""
        D_RH, U_OR = self.down(), self.up()
        states_NH = torch.eye(D_RH.shape[1]).to(D_RH)
        found_NO = self.branch(states_NH @ D_RH.T)
        expected_NO = self.c_O.expand_as(found_NO).clone()
        for d_H, a, u_O in zip(D_RH, self.a_R, U_OR.T, strict=True):
            expected_NO += torch.outer(ACTIVATIONS[self.activation](states_NH @ d_H + a), u_O)
        torch.testing.assert_close(found_NO, self.scale * expected_NO, rtol=1e-4, atol=1e-5)
