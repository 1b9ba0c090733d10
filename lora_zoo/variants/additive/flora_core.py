"""FLoRA: Low-Rank Core Space for N-dimension (Si et al., 2024); not Flora, the optimiser (Hao et al.)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dtypes import product
from lora_zoo.core.variants import register
from lora_zoo.variants.zero_core import ZeroCore


@register("flora_core")
class FLoRACore(ZeroCore):
    """Tucker's form of ΔW: a core of ΔW's own dimensions, times a factor for each of them.

    For a matrix the core E is (r, r), and the equation is MoSLoRA's. Apart are the starts: here E = 0 and
    A, B ~ N(0, 0.02²), as in the authors' code, so that E moves first; there B = 0, and B moves first. A
    convolution's core has the kernel's dimensions, which a matrix (O, I) does not show: it is refused.
    """

    title = "FLoRA core"
    paper = "arXiv:2405.14739"
    equation = "W' = W + (α/r) B E A, E = 0 at the start"
    count = "R * (O + I + R)"

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.E_RR = nn.Parameter(context.full((len(self.A_RI), len(self.A_RI))))

    @staticmethod
    def drawn(context: LayerContext, rank: int) -> tuple[Tensor, Tensor]:
        O, I = context.shape
        return context.normal("A", (rank, I), 0.02), context.normal("B", (rank, O), 0.02)

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return (
            "FLoRA's core of a convolution is no matrix; moslora adapts it" if kind == "convolution" else None
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        return product(self.scale * self.B_OR, self.E_RR), self.A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Tucker's form: from ΔW and the factors the core comes back, ΔW = B (B⁺ ΔW A⁺) A."""
        dW_OI = self.weight(W_OI) - W_OI
        core_RR = torch.linalg.pinv(self.B_OR) @ dW_OI @ torch.linalg.pinv(self.A_RI)
        torch.testing.assert_close(self.B_OR @ core_RR @ self.A_RI, dW_OI, rtol=1e-4, atol=1e-5)
