"""BiLoRA: A Bi-level Optimization Framework for Overfitting-Resilient LoRA (Qiang et al., 2024).

Shapes: O out, I in, R rank.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import uncast
from lora_zoo.core.variants import register
from lora_zoo.inits.random import orthonormal_rows
from lora_zoo.variants.adaptive.batched import ByShape, deviation, sum_squared
from lora_zoo.variants.adaptive.two_levels import TwoLevels
from lora_zoo.variants.low_rank import Product, Scaled


class Levels(TwoLevels):
    """§3: P and Q learn on one part of the training data, Λ on the other. The weights are AdaLoRA's."""

    who, upper = "bilora", "E_R"
    packable = True  # its penalty reads the adapters' own parameters

    def __init__(
        self,
        adapters: Mapping[str, "BiLoRA"],
        *,
        orth_reg_weight: float = 0.1,
        entropy_weight: float = 0.1,
        **levels: Any,
    ) -> None:
        super().__init__(adapters, **levels)
        if min(orth_reg_weight, entropy_weight) < 0:
            needs = "needs orth_reg_weight >= 0 and entropy_weight >= 0"
            raise ValueError(f"bilora: {needs}; got {orth_reg_weight} and {entropy_weight}")
        self.orth_reg_weight, self.entropy_weight = orth_reg_weight, entropy_weight
        sites = list(adapters.values())
        self.binary = sites[0].parametrization == "binary"
        self.rows, self.columns = (ByShape([getattr(a, f) for a in sites]) for f in ("A_RI", "B_OR"))

    def regularizer(self) -> Tensor:
        """‖PᵀP - 1‖² + ‖QQᵀ - 1‖², of which Λ takes no gradient, and the entropy of binary values."""
        with uncast(self.rows.tensors[0].device):
            of_Q = [deviation(Q_NRI) for Q_NRI in self.rows.stacked()]
            of_P = [deviation(P_NOR.mT) for P_NOR in self.columns.stacked()]
        penalty = self.orth_reg_weight * sum_squared(torch.cat(of_Q + of_P))
        if self.binary:
            values = torch.cat([adapter.values() for adapter in self.adapters.values()])
            entropies = torch.special.entr(torch.cat([values, 1 - values]))
            penalty = penalty + self.entropy_weight * entropies.sum()
        return penalty


@register("bilora")
class BiLoRA(Product, Scaled):
    """§3.1: ΔW = P Λ Q in an SVD's form; Λ is free, a softmax, or a sigmoid that is driven to 0 or 1.

    Free values begin at 0 between random P and Q, as in AdaLoRA; the others begin alike, where P is 0.
    """

    paper = "arXiv:2403.13037"
    equation = "W' = W + (α/r) P Λ Q, Λ diagonal and learned on data of its own"
    count = "R * (O + I + 1)"
    hooks = Levels
    inits = ("gaussian", "orthogonal")

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        parametrization: Literal["real", "softmax", "binary"] = "real",
        init: str = "gaussian",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.scale, self.parametrization = self.scale_of(alpha, rank), parametrization
        draws = (
            context.normal(f, (rank, side), 0.02) for f, side in zip("QP", context.shape[::-1], strict=True)
        )
        Q_RI, P_RO = (orthonormal_rows(draw) if init == "orthogonal" else draw for draw in draws)
        self.A_RI, self.E_R = nn.Parameter(Q_RI), nn.Parameter(context.full((rank,)))
        self.B_OR = nn.Parameter(
            P_RO.T.contiguous() if parametrization == "real" else context.full(P_RO.T.shape)
        )
        self.dropout = context.dropout(lora_dropout)

    def values(self) -> Tensor:
        """The diagonal of Λ (R)."""
        if self.parametrization == "real":
            return self.E_R
        return self.E_R.softmax(0) if self.parametrization == "softmax" else self.E_R.sigmoid()

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.B_OR * self.values(), self.A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """With P and Q made orthonormal, the singular values of ΔW are s |Λ|."""
        svd = copy.deepcopy(self)
        svd.B_OR.copy_(torch.linalg.qr(self.B_OR).Q)
        svd.A_RI.copy_(torch.linalg.qr(self.A_RI.T).Q.T)
        found_R = torch.linalg.svdvals(svd.weight(W_OI) - W_OI)[: len(self.E_R)]
        expected_R = (self.scale * self.values()).abs().sort(descending=True).values
        torch.testing.assert_close(found_R, expected_R.to(found_R.dtype), rtol=1e-4, atol=1e-5)
