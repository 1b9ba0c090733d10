"""DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation (Bini et al., ICLR 2025)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.variants.low_rank import Product

LEAST = 1e-4
"""PEFT's least norm of a row of A and of a column of B."""


@register("delora")
class DeLoRA(Product):
    """§3: each of the r products has length one, and λ/r ‖W‖ (of each column) is the strength of all.

    `start=residual`, as in the official code, draws A and B and takes their first product away; `zero` is
    PEFT's: B begins at 0, and a norm below 10⁻⁴ counts as that. λ is trained, too, and begins at
    `delora_lambda`. The columns' norms are those of the frozen W, and are saved.
    """

    paper = "arXiv:2503.18225"
    equation = "W' = W + (λ/r) Σ (bᵢ/‖bᵢ‖)(aᵢ/‖aᵢ‖)ᵀ diag(‖W‖_col) - start"
    count = "R * (O + I) + 1"
    peft = PlainFormat(
        "DeLoRA",
        {"A_RI": "delora_A", "B_OR": "delora_B", "strength": "delora_lambda", "norm_I": "delora_w_norm"},
        {
            "rank": ("r", 8),
            "delora_lambda": ("delora_lambda", 15.0),
            "lora_dropout": ("module_dropout", 0.0),
        },
        implied={"start": "zero"},
    )
    norm_I: Tensor
    A0_RI: Tensor | None
    B0_OR: Tensor | None

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        delora_lambda: float = 15.0,
        start: Literal["residual", "zero"] = "residual",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        (O, I), residual, third = context.shape, start == "residual", 3**-0.5
        self.A_RI = nn.Parameter(context.uniform("A", (rank, I), kaiming_bound(I, third)))
        B_RO = context.uniform("B", (rank, O), kaiming_bound(rank, third))
        self.B_OR = nn.Parameter(B_RO.T.contiguous() if residual else context.full((O, rank)))
        self.strength = nn.Parameter(context.full((1,), float(delora_lambda)))
        norm_I = context.host.matrix().detach().to(self.A_RI.dtype).norm(dim=0)
        self.register_buffer("norm_I", norm_I)
        self.dropout = context.dropout(lora_dropout)
        self.register_buffer("A0_RI", self.A_RI.detach().clone() if residual else None)
        self.register_buffer("B0_OR", self.B_OR.detach().clone() if residual else None)

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int:
        return min(shape)

    def product(self, B_OR: Tensor, A_RI: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of λ/r times the products of length one, scaled by the norms of the columns."""
        length_R = B_OR.norm(dim=0).clamp_min(LEAST) * A_RI.norm(dim=1).clamp_min(LEAST)
        return B_OR * (self.strength / len(A_RI) / length_R), A_RI * self.norm_I

    def factors(self) -> tuple[Tensor, Tensor]:
        B_OR, A_RI = self.product(self.B_OR, self.A_RI)
        if self.B0_OR is None or self.A0_RI is None:
            return B_OR, A_RI
        B0_OR, A0_RI = self.product(self.B0_OR, self.A0_RI)
        return torch.cat([B_OR, -B0_OR], dim=1), torch.cat([A_RI, A0_RI])

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The update without ‖W‖ is no longer than λ, each start included, however long A and B are."""
        dW_OI = self.weight(W_OI) - W_OI
        directions_OI = dW_OI[:, self.norm_I > 0] / self.norm_I[self.norm_I > 0]
        starts = 1 if self.B0_OR is None else 2
        assert directions_OI.norm() <= starts * self.strength.abs() * (1 + 1e-4) + 1e-4
