"""MALoRA: Mixture of Asymmetric Low-Rank Adaptation (Wang et al., Findings of NAACL 2025).

Shapes: O out, I in, R rank, D the subspace, E experts.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.variants.routed.mixture import Mixture, expert_starts, linear_router


@register("malora")
class MALoRA(Mixture):
    """The down projections Aᵢ = Pᵢ S of all experts lie in one subspace S, of which each has coefficients Pᵢ.

    There is no official code. `subspace` is D, by default twice the rank. Not settled by a source in reach:
    S starts as `init` draws A, and Pᵢ from N(0, 1/D), so that the rows of Aᵢ are as long as those of S; the
    two experts that a token has, and Switch's balance, are those of mixtures of LoRAs. R is the rank of Bᵢ:
    where D < E R / (1 + E R / I) there are fewer parameters than in a mixture of whole LoRAs.
    """

    paper = "arXiv:2410.22782"
    equation = "W' x = W x + (α/r) Σᵢ ωᵢ Bᵢ Pᵢ S x, ω = the top_k of softmax(G x) over their sum"
    count = "(subspace or 2 * R) * (I + experts * R) + experts * (R * O + I)"
    paper_alpha = "2r"

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        experts: int = 8,
        subspace: int = 0,
        top_k: int = 2,
        balance: float = 0.001,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context, experts=experts, top_k=top_k, balance=balance)
        self.scale = self.scale_of(alpha, rank)
        O, D = context.shape[0], subspace or 2 * rank
        (S_DI,) = expert_starts(context, 1, D, self.scale, init)
        P_ERD = [context.normal(f"P {number}", (rank, D), D**-0.5) for number in range(experts)]
        self.S_DI, self.P_ERD = nn.Parameter(S_DI), nn.Parameter(torch.stack(P_ERD))
        self.B_EOR = nn.Parameter(context.full((experts, O, rank)))
        self.G_EI = nn.Parameter(linear_router(context, experts))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B"

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Any) -> int | None:
        """Half the smaller side where the subspace follows the rank."""
        return min(shape) if hyper["subspace"] else min(shape) // 2

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Any) -> str | None:
        if not 0 <= hyper["subspace"] <= min(shape):
            return f"subspace must lie between 1 and {min(shape)}, or be 0; got {hyper['subspace']}"
        return super().refusal(kind, shape, hyper)

    def router(self) -> Tensor:
        return self.G_EI

    def pairs(self) -> tuple[Tensor, Tensor]:
        return self.B_EOR, self.P_ERD @ self.S_DI
