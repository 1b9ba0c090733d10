"""Deep LoRA: Compressible Dynamics in Deep Overparameterized Low-Rank Learning (Yaras et al., ICML 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dtypes import product
from lora_zoo.core.variants import register
from lora_zoo.inits.random import orthonormal_rows
from lora_zoo.variants.low_rank import Product


@register("deep_lora")
class DeepLoRA(Product):
    """§4: ΔW is a product of `depth` matrices, all ε times orthogonal at the start, which favours low ranks.

    The width is r throughout, as in the official few-shot experiments; the inner matrices begin at ε 1, as
    its compressed form has them. That form, whose outer pair comes from a first gradient, is not built. No
    scale: at step 0 ΔW has the norm ε^depth, 10⁻⁹ with the defaults, and not 0. Letter: D inner matrices.
    """

    title = "Deep LoRA"
    paper = "arXiv:2406.04112"
    equation = "W' = W + W₃ W₂ W₁, each ε times orthogonal at the start"
    identity_at_start = False
    count = "R * (O + I) + (depth - 2) * R * R"

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        depth: int = 3,
        init_scale: float = 1e-3,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        O, I = context.shape
        B_RO, A_RI = context.normal("B", (rank, O), 1.0), context.normal("A", (rank, I), 1.0)
        self.A_RI = nn.Parameter(init_scale * orthonormal_rows(A_RI))
        self.B_OR = nn.Parameter((init_scale * orthonormal_rows(B_RO)).T.contiguous())
        inner_DRR = torch.eye(rank).expand(depth - 2, rank, rank)
        self.inner_DRR = nn.Parameter(context.full((depth - 2, rank, rank)).add_(inner_DRR, alpha=init_scale))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return min(shape)

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        if hyper["depth"] >= 3 and hyper["init_scale"] > 0:
            return None
        given = f"depth={hyper['depth']} and init_scale={hyper['init_scale']}"
        return f"depth must be at least 3 and init_scale above 0; got {given}"

    def factors(self) -> tuple[Tensor, Tensor]:
        B_OR: Tensor = self.B_OR
        for inner_RR in self.inner_DRR.flip(0):
            B_OR = product(B_OR, inner_RR)
        return B_OR, self.A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is of the depth-th degree: with all matrices doubled it is 2^depth times as large."""
        depth, product_OI = len(self.inner_DRR) + 2, self.B_OR.detach()
        for inner_RR in self.inner_DRR.flip(0):
            product_OI = product_OI @ (2 * inner_RR)
        doubled_OI = 2 * product_OI @ (2 * self.A_RI)
        torch.testing.assert_close(doubled_OI / 2**depth + W_OI, self.weight(W_OI))
