"""TriLoRA: Integrating SVD for Advanced Style Personalization (Feng et al., 2024)."""

from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.variants.zero_core import ZeroCore


@register("trilora")
class TriLoRA(ZeroCore):
    """ΔW in an SVD's form whose three parts train freely: AdaLoRA's without its penalty and its budget.

    The start is that of the re-implementation in Subspace-Tuning: both sides of `nn.Linear`'s widths, the
    diagonal zero. That code has no scale, which α = r, the default here, is.
    """

    paper = "arXiv:2405.11236"
    equation = "W' = W + (α/r) B diag(e) A, e = 0 at the start"
    count = "R * (O + I + 1)"

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.e_R = nn.Parameter(context.full((len(self.A_RI),)))

    @staticmethod
    def drawn(context: LayerContext, rank: int) -> tuple[Tensor, Tensor]:
        (O, I), third = context.shape, 3**-0.5
        A_RI = context.uniform("A", (rank, I), kaiming_bound(I, third))
        return A_RI, context.uniform("B", (rank, O), kaiming_bound(rank, third))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.B_OR * self.e_R, self.A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is a sum of r rank-one matrices, each with a weight of its own and none with another's row."""
        parts = zip(self.B_OR.T, self.e_R, self.A_RI, strict=True)
        expected_OI = sum(self.scale * e * torch.outer(B_O, A_I) for B_O, e, A_I in parts)
        torch.testing.assert_close(self.weight(W_OI), W_OI + expected_OI)
