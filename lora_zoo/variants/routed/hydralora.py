"""HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning (Tian et al., NeurIPS 2024).

Shapes: O out, I in, R rank, N heads; x is (..., I).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.host import LayerHost
from lora_zoo.core.init import Init, initial_factors
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Scaled


@register("hydralora")
class HydraLoRA(Scaled):
    """§3.2, eq. 5: one A for all heads, B heads weighed for each token by a router that trains with them.

    One dropout mask a pass, as in the equation; the official code draws one for each head.
    """

    paper = "arXiv:2404.19245"
    equation = "W' x = W x + (α/r) Σᵢ ωᵢ Bᵢ A x, ω = softmax(G x)"
    count = "R * I + heads * (R * O + I)"
    pointwise = False
    paper_alpha = 32.0  # the official scripts'; it stays fixed while the rank varies

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 4,
        alpha: Alpha = "auto",
        heads: int = 4,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        if heads < 1:
            raise ValueError(f"hydralora: heads must be at least 1; got {heads}")
        self.scale = self.scale_of(alpha, rank)
        W_OI, (O, I) = context.host.matrix(), context.shape
        first, _ = initial_factors(
            init,
            W_OI,
            rank=rank,
            scale=self.scale,
            seed=context.seed,
            matrix=context.name,
            statistics=context.statistics,
        )
        self.A_RI = nn.Parameter(first.A_RI)
        self.B_NOR = nn.Parameter(context.full((heads, O, rank)))
        self.G_NI = nn.Parameter(context.uniform("G", (heads, I), kaiming_bound(I, 1 / math.sqrt(3))))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B"

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return "its router weighs tokens, of which there are none" if kind == "convolution" else None

    def mixture(self, logits_N: Tensor, h_R: Tensor) -> Tensor:
        """The branch's output (..., O) from the router's logits (..., N) and A x (..., R)."""
        weights_N = logits_N.softmax(-1, dtype=at_least_float32(logits_N.dtype)).to(h_R.dtype)
        weighed = (weights_N[..., None] * h_R[..., None, :]).flatten(-2)
        return F.linear(weighed, self.scale * self.B_NOR.transpose(0, 1).flatten(1))

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y, dropped = host.base(x), host.dropped(x, self.dropout)
        return y + self.mixture(host.times(x, self.G_NI), host.times(dropped, self.A_RI)).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Each token meets one matrix, the mean of all s Bᵢ A weighed by softmax(G x)."""
        tokens_TI = torch.eye(self.A_RI.shape[1]).to(self.A_RI)
        found_TO = self.mixture(tokens_TI @ self.G_NI.T, tokens_TI @ self.A_RI.T)
        for x_I, y_O in zip(tokens_TI, found_TO, strict=True):
            raised_N = (self.G_NI @ x_I).exp()
            B_OR = (raised_N[:, None, None] * self.B_NOR).sum(0) / raised_N.sum()
            torch.testing.assert_close(y_O, self.scale * B_OR @ self.A_RI @ x_I, rtol=1e-4, atol=1e-5)
