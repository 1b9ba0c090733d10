"""FedPara: Low-Rank Hadamard Product (Hyeon-Woo et al., ICLR 2022); LoHa in LyCORIS and PEFT."""

from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import Init
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Additive


@register("loha")
class LoHa(Additive):
    """§2.1, proposition 1: the product of two low-rank matrices, entry by entry, has a rank of up to r².

    The second pair begins random, with PEFT's widths, and `init` begins the first one.
    """

    paper = "arXiv:2108.06098"
    equation = "W' = W + (α/r) (B₁ A₁) ⊙ (B₂ A₂)"
    count = "2 * R * (O + I)"
    peft = PlainFormat(
        "LoHa",
        {"B_OR": "hada_w1_a", "A_RI": "hada_w1_b", "B2_OR": "hada_w2_a", "A2_RI": "hada_w2_b"},
        {"rank": ("r", 8), "alpha": ("alpha", 8)},
    )

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        (O, I), third = context.shape, 3**-0.5
        B2_RO = context.uniform("B2", (self.rank, O), kaiming_bound(self.rank, third))
        self.A2_RI = nn.Parameter(context.uniform("A2", (self.rank, I), kaiming_bound(I, third)))
        self.B2_OR = nn.Parameter(B2_RO.T.contiguous())

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
