"""Bottleneck adapters: in series (Houlsby et al., ICML 2019) and parallel (He et al., ICLR 2022).

Shapes: O out, I in, R the bottleneck, H what it reads (the layer's O outputs, or its I inputs).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.host import LayerHost
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@register("bottleneck")
class Bottleneck(Adapter):
    """§2.1: a network of one hidden layer behind the projections that end attention and feed-forward.

    With `mode=parallel` it stands beside the layer and reads its input (arXiv:2110.04366 puts it beside a
    whole sublayer, with activation=relu, scale=4). `rank` is the bottleneck, AdapterHub's O /
    reduction_factor. D starts from Kaiming's draw, U from zero; with `std` (Houlsby's paper: 0.01, code:
    0.001) both start normal, and the model changes a little at step 0. In series it acts before the block's
    own dropout, in Houlsby's code after it.
    """

    paper = "arXiv:1902.00751"
    equation = "W' x = y + s (U φ(D h + a) + c), y = W x + b; series: h = y, parallel: h = x"
    count = "R * (O + (O if mode == 'series' else I) + 1) + O"
    pointwise = False
    targets = ("o", "down")

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 64,
        mode: Literal["series", "parallel"] = "series",
        activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu",
        scale: float = 1.0,
        std: float = 0.0,
    ) -> None:
        super().__init__(context)
        if std < 0 or not 0 < abs(scale) < float("inf"):
            raise ValueError(
                f"bottleneck: std must not be negative, and scale a number other than 0; got {std}, {scale}"
            )
        self.series, self.activation, self.scale = mode == "series", activation, scale
        O, I = context.shape
        H = O if self.series else I
        kaiming = kaiming_bound(H, 3**-0.5)
        D_RH = context.normal("D", (rank, H), std) if std else context.uniform("D", (rank, H), kaiming)
        self.D_RH, self.a_R = nn.Parameter(D_RH), nn.Parameter(context.full((rank,)))
        self.U_OR = nn.Parameter(context.normal("U", (rank, O), std).T.contiguous())
        self.c_O = nn.Parameter(context.full((O,)))

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return "a bottleneck reads vectors, and a layer of images has none" if kind == "convolution" else None

    def branch(self, z_R: Tensor) -> Tensor:
        """The network's output (..., O) from D h (..., R)."""
        hidden_R = ACTIVATIONS[self.activation](z_R + self.a_R)
        return self.scale * F.linear(hidden_R, self.U_OR, self.c_O)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y = host.base(x)
        z_R = F.linear(y.to(self.D_RH.dtype), self.D_RH) if self.series else host.times(x, self.D_RH)
        return y + self.branch(z_R).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Every unit adds one column, as often as it fires: s (c + Σ_k U_k φ(D_k h + a_k))."""
        states_NH = torch.eye(self.D_RH.shape[1]).to(self.D_RH)
        found_NO = self.branch(states_NH @ self.D_RH.T)
        expected_NO = self.c_O.expand_as(found_NO).clone()
        for d_H, a, u_O in zip(self.D_RH, self.a_R, self.U_OR.T, strict=True):
            expected_NO += torch.outer(ACTIVATIONS[self.activation](states_NH @ d_H + a), u_O)
        torch.testing.assert_close(found_NO, self.scale * expected_NO, rtol=1e-4, atol=1e-5)
