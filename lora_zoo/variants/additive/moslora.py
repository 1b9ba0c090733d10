"""MoSLoRA: Mixture-of-Subspaces in Low-Rank Adaptation (Wu et al., EMNLP 2024)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dtypes import product
from lora_zoo.core.init import Init
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.inits.random import orthonormal_rows
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Additive


@register("moslora")
class MoSLoRA(Additive):
    """§3: a trained mixer M (r, r) sums all r² products of a column of B and a row of A.

    `mixer=kaiming`, U(±1/√r), is the official code's draw, `orthogonal` the paper's other one; `identity`
    begins as LoRA does. A zero M would be dead beside a zero B.
    """

    paper = "arXiv:2406.11909"
    equation = "W' = W + (α/r) B M A"
    count = "R * (O + I + R)"

    def __init__(
        self,
        context: LayerContext,
        *,
        mixer: Literal["kaiming", "orthogonal", "identity"] = "kaiming",
        **hyper: Any,
    ) -> None:
        super().__init__(context, **hyper)
        M_RR = torch.eye(self.rank, out=context.full((self.rank, self.rank)))
        if mixer != "identity":  # drawn row by row, so that a smaller rank has the leading block
            bound = kaiming_bound(self.rank, 3**-0.5)
            rows = [context.uniform(f"M{row}", (self.rank,), bound) for row in range(self.rank)]
            M_RR = torch.stack(rows)
        self.M_RR = nn.Parameter(orthonormal_rows(M_RR).contiguous() if mixer == "orthogonal" else M_RR)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return bool(init.zero) or init.moves  # M lies between, so that B A = 0 is not enough

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        return FactorPair(product(self.scale * self.B_OR, self.M_RR), self.A_RI), None

    def components(self) -> int:
        """0: M mixes every column of B with every row of A, so that none of them is alone."""
        return 0

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is the sum of all pairs of subspaces, each with its weight in M."""
        mixed_OI = torch.zeros_like(self.weight(W_OI))
        for B_O, weights_R in zip(self.B_OR.T, self.M_RR, strict=True):
            mixed_OI += torch.outer(B_O, weights_R @ self.A_RI)
        torch.testing.assert_close(self.weight(W_OI), W_OI + self.scale * mixed_OI)
