"""HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning (Tian et al., NeurIPS 2024).

Shapes: O out, I in, R rank, N heads.
"""

from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.variants.routed.mixture import Mixture, expert_starts, linear_router


@register("hydralora")
class HydraLoRA(Mixture):
    """§3.2, eq. 5: one A for all heads, B heads weighed for each token by a router that trains with them.

    One dropout mask a pass, as in the equation; the official code draws one for each head.
    """

    paper = "arXiv:2404.19245"
    equation = "W' x = W x + (α/r) Σᵢ ωᵢ Bᵢ A x, ω = softmax(G x)"
    count = "R * I + heads * (R * O + I)"
    routers = ("G_NI",)
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
        if heads < 1:
            raise ValueError(f"hydralora: heads must be at least 1; got {heads}")
        super().__init__(context, experts=heads)
        self.scale = self.scale_of(alpha, rank)
        (A_RI,) = expert_starts(context, 1, rank, self.scale, init)
        self.A_RI = nn.Parameter(A_RI)
        self.B_NOR = nn.Parameter(context.full((heads, context.shape[0], rank)))
        self.G_NI = nn.Parameter(linear_router(context, heads))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B"

    def router(self) -> Tensor:
        return self.G_NI

    def pairs(self) -> tuple[Tensor, Tensor]:
        return self.B_NOR, self.A_RI[None]
