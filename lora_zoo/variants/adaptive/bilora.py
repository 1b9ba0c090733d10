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
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.variants import register
from lora_zoo.inits.random import orthonormal_rows
from lora_zoo.variants.adaptive.batched import ByShape, deviation, sum_squared
from lora_zoo.variants.low_rank import Product, Scaled

INNER, OUTER = "inner", "outer"


class Levels(AdapterHooks):
    """§3: P and Q learn on one part of the training data, Λ on the other, in turns of steps.

    The upper level's gradient is that of the loss at the P and Q of the moment (first order), without the
    unrolled step of the lower level that the paper differentiates through. The penalties' weights are
    AdaLoRA's.
    """

    packable = True  # its penalty reads the adapters' own parameters

    def __init__(
        self,
        adapters: Mapping[str, "BiLoRA"],
        *,
        outer_share: float = 0.2,
        inner_steps: int = 1,
        outer_steps: int = 1,
        orth_reg_weight: float = 0.1,
        entropy_weight: float = 0.1,
    ) -> None:
        super().__init__(adapters)
        if min(inner_steps, outer_steps) < 1 or min(orth_reg_weight, entropy_weight) < 0:
            needs = "needs inner_steps >= 1, outer_steps >= 1, orth_reg_weight >= 0 and entropy_weight >= 0"
            given = f"{inner_steps}, {outer_steps}, {orth_reg_weight} and {entropy_weight}"
            raise ValueError(f"bilora: {needs}; got {given}")
        self.turns, self.inner_steps = inner_steps + outer_steps, inner_steps
        self.orth_reg_weight, self.entropy_weight = orth_reg_weight, entropy_weight
        sites = list(adapters.values())
        self.binary = sites[0].parametrization == "binary"
        self.rows, self.columns = (ByShape([getattr(a, f) for a in sites]) for f in ("A_RI", "B_OR"))

    @classmethod
    def parts(cls, *, outer_share: float = 0.2, **hyper: Any) -> Mapping[str, float]:
        if not 0 < outer_share < 1:
            raise ValueError(f"bilora: outer_share must lie between 0 and 1; got {outer_share}")
        return {INNER: 1 - outer_share, OUTER: outer_share}

    def part(self, step: int) -> str:
        return INNER if (step - 1) % self.turns < self.inner_steps else OUTER

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

    def on_after_backward(self, progress: Progress) -> None:
        values_rest = self.part(progress.step) == INNER
        for adapter in self.adapters.values():
            for p in (adapter.E_R,) if values_rest else (adapter.A_RI, adapter.B_OR):
                p.grad = None

    def law(self) -> None:
        """Of each round of turns, the lower level has `inner_steps`, and they come first."""
        seen = [self.part(step) for step in range(1, 2 * self.turns + 1)]
        assert seen == 2 * (self.inner_steps * [INNER] + (self.turns - self.inner_steps) * [OUTER])


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
