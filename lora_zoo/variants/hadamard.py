"""Base class of variants whose ΔW is the product, entry by entry, of two low-rank matrices.

Shapes: O out, I in, R rank, P = R² their product.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import Init
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Additive


class Hadamard(Additive, ABC):
    """W' = W + s (B A) ⊙ (B₂ A₂), a rank of up to r²; `init` begins the first pair, the class the second."""

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        B2_OR, A2_RI = self.second(context)
        self.B2_OR, self.A2_RI = nn.Parameter(B2_OR.contiguous()), nn.Parameter(A2_RI.contiguous())

    @abstractmethod
    def second(self, context: LayerContext) -> tuple[Tensor, Tensor]:
        """The start of B₂ (O, R) and A₂ (R, I)."""

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        """ΔW as one product of rank P = r²: the columns' and the rows' Khatri-Rao products."""
        B_OP = self.scale * (self.B_OR[:, :, None] * self.B2_OR[:, None]).flatten(1)
        return FactorPair(B_OP, (self.A_RI[:, None] * self.A2_RI).flatten(0, 1)), None

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        hadamard_OI = (self.B_OR @ self.A_RI) * (self.B2_OR @ self.A2_RI)
        torch.testing.assert_close(self.weight(W_OI), W_OI + self.scale * hadamard_OI)
