"""HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for LLMs (Huang et al., ICLR 2025)."""

import torch
from torch import Tensor

from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.variants.low_rank import LowRank


@register("hira")
class HiRA(LowRank):
    """Eq. 3: each weight is scaled by one plus its entry of B A: ΔW has up to r times the rank of W.

    The paper's update has no scale, which is alpha = r; PEFT's files hold no other.
    """

    paper = "https://openreview.net/forum?id=TwJrTz9cRS"
    equation = "W' = W + (α/r) W ⊙ B A"
    count = "R * (O + I)"
    peft = PlainFormat(
        "HiRA",
        {"A_RI": "hira_A", "B_OR": "hira_B"},
        {"rank": ("r", 32), "lora_dropout": ("hira_dropout", 0.0)},
        conv1d=True,
    )

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        """Starts that look neither at W nor at its gradient: they fit B A to W, which B A multiplies here."""
        return not init.residual and not init.needs

    def weight(self, W_OI: Tensor) -> Tensor:
        return W_OI + W_OI * self.update()

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The update is proportional to W, entry by entry: none where W is zero, twice where W is double."""
        mask_OI = torch.ones_like(W_OI)
        mask_OI[::2] = 0
        dW_OI = self.weight(W_OI) - W_OI
        thinned_OI, twice_OI = mask_OI * W_OI, 2 * W_OI
        torch.testing.assert_close(self.weight(thinned_OI) - thinned_OI, mask_OI * dW_OI)
        torch.testing.assert_close(self.weight(twice_OI) - twice_OI, 2 * dW_OI)
