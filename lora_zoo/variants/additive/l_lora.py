"""L-LoRA: Parameter-Efficient Multi-Task Model Fusion with Partial Linearization (Tang et al., ICLR 2024)."""

from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import Init, find_init
from lora_zoo.core.variants import register
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Additive


@register("l_lora")
class LLoRA(Additive):
    """§4.2: B A is replaced by its tangent at the start (A₀, B₀), which is frozen and kept.

    ΔW is affine in A and B: adapters of one start add and average as their ΔW do, without cross terms. With
    LoRA's usual start B₀ = 0 the tangent is s B A₀, in which A never counts (a linear LoRA-FA); so both
    factors begin away from zero. A residual `init` takes B₀ A₀ off W, `orthogonal_pair` has B₀ A₀ = 0, and
    `init_ab` moves the model. The paper does not say which start its linear LoRA has.
    """

    title = "L-LoRA"
    paper = "arXiv:2310.04742"
    equation = "W' = W + (α/r) (B₀ A₀ + (B - B₀) A₀ + B₀ (A - A₀))"
    count = "R * (O + I)"

    A0_RI: Tensor
    B0_OR: Tensor

    def __init__(self, context: LayerContext, *, init: str = "symmetric", **hyper: Any) -> None:
        super().__init__(context, init=init, **hyper)
        self.residual = find_init(self.init).residual
        self.A0_RI, self.B0_OR = self.A_RI.detach().clone(), self.B_OR.detach().clone()

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.zero and not init.control

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        """s [B, B₀] and [A₀; A - A₀], and what a residual initialisation took off W."""
        B_OK = self.scale * torch.cat([self.B_OR, self.B0_OR], dim=1)
        learning = FactorPair(B_OK, torch.cat([self.A0_RI, self.A_RI - self.A0_RI]))
        return learning, FactorPair(-self.scale * self.B0_OR, self.A0_RI) if self.residual else None

    def components(self) -> int:
        """0: a column of B alone still has its tangent."""
        return 0

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """W' is the value at the start and the derivative along the way from it."""
        start, way = (self.A0_RI, self.B0_OR), (self.A_RI - self.A0_RI, self.B_OR - self.B0_OR)
        value_OI, along_OI, *_ = torch.func.jvp(lambda A_RI, B_OR: self.scale * B_OR @ A_RI, start, way)
        taken_OI = value_OI if self.residual else torch.zeros_like(value_OI)
        torch.testing.assert_close(self.weight(W_OI), W_OI + value_OI - taken_OI + along_OI)
