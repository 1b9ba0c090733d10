"""Hybrid: LoRA in attention and a bottleneck adapter behind the feed-forward part, trained together.

Shapes: O out, I in, R the rank, which is the bottleneck's width as well.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import VARIANTS, register
from lora_zoo.variants.low_rank import Scaled


@register("hybrid")
class Hybrid(Scaled):
    """Two of UniPELT's three modules, without its gates: LoRA, and a bottleneck adapter behind `down`.

    A matrix of the feed-forward part (gate, up, down) gets the bottleneck, in series and with LoRA's scale;
    any other gets LoRA, by default q, k and v (UniPELT: q and v). `rank_pattern={down:64}` widens the
    bottleneck. `lora_dropout` acts on LoRA's inputs alone. With soft prompts or other adapters that are
    trained on their own: several named adapters, `adapters_of(model).activate("a", "b")`, or `prior=`.
    """

    title = "LoRA + bottleneck"
    paper = "arXiv:2110.07577"
    equation = "W' = W + s B A in attention; W' x = y + s (U φ(D y + a) + c) in the FFN, y = W x + b; s = α/r"
    count = "R * (2 * O + 1) + O if role in ('gate', 'up', 'down') else R * (O + I)"
    pointwise = False
    made_of = ("lora", "bottleneck")
    targets = ("q", "k", "v", "down")

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.scale = self.scale_of(alpha, rank)
        self.inner: Adapter
        lora, bottleneck = self._parts()
        if context.role in ("gate", "up", "down"):
            self.inner = bottleneck(context, rank=rank, activation=activation, scale=self.scale)
            self.dropout = context.dropout(0.0)
        else:
            self.inner = lora(context, rank=rank, alpha=alpha, lora_dropout=lora_dropout)
            self.dropout = self.inner.dropout

    @classmethod
    def _parts(cls) -> list[Any]:
        return [VARIANTS.find(name) for name in cls.made_of]

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return next(filter(None, (part.refusal(kind, shape, hyper) for part in cls._parts())), None)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y: Tensor = self.inner(x, host)
        return y

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Its part keeps its own law; LoRA's product has the stated scale."""
        self.inner.law(W_OI)
        factors = self.inner.factors()
        if factors is not None:
            learned = dict(self.inner.named_parameters())
            dW_OI = self.scale * learned["B_OR"] @ learned["A_RI"]
            torch.testing.assert_close(factors[0] @ factors[1], dW_OI)
