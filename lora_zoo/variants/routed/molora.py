"""MoLORA: Pushing Mixture of Experts to the Limit (Zadouri et al., ICLR 2024).

Shapes: O out, I in, R rank, E experts.
"""

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.variants import register
from lora_zoo.variants.routed.mixture import Mixture


@register("molora")
class MoLORA(Mixture):
    """§2.3: soft merging, each token has the mean of all experts' ΔW, weighed by its router.

    The mean of the ΔW is that of the outputs, as in the official code; factors are not mixed one by one.
    A and the router start from N(0, 0.02²), as there.
    """

    paper = "arXiv:2309.05444"
    equation = "W' x = W x + (α/r) (Σᵢ ωᵢ Bᵢ Aᵢ) x, ω = softmax(G x)"
    count = "experts * (R * (O + I) + I)"
    paper_alpha = 16.0

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 4,
        alpha: Alpha = "auto",
        experts: int = 10,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context, experts=experts)
        self.scale = self.scale_of(alpha, rank)
        O, I = context.shape
        starts = [context.normal(f"A {number}", (rank, I), 0.02) for number in range(experts)]
        self.A_ERI = nn.Parameter(torch.stack(starts))
        self.B_EOR = nn.Parameter(context.full((experts, O, rank)))
        self.G_EI = nn.Parameter(context.normal("G", (experts, I), 0.02))
        self.dropout = context.dropout(lora_dropout)

    def router(self) -> Tensor:
        return self.G_EI

    def pairs(self) -> tuple[Tensor, Tensor]:
        return self.B_EOR, self.A_ERI
