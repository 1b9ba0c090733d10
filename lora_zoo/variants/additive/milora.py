"""MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM Finetuning (Wang et al., 2024)."""

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive


@register("milora")
class MiLoRA(Additive):
    """Eq. 3-5: trains the r minor singular triplets; the principal part of W stays frozen."""

    paper = "arXiv:2406.09044"
    equation = "W' = W + (α/r) (B A - B₀ A₀), B₀ A₀ = bottom-r SVD of W"
    count = "R * (O + I)"
    peft = LoraFormat(reads=False)

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: float = 8.0,
        init: str = "milora",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context, rank=rank, scale=alpha / rank, init=init, lora_dropout=lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.name.startswith("milora")

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        assert self.A0_RI is not None and self.B0_OR is not None
        singular_K = torch.linalg.svdvals(W_OI.to(self.A0_RI.dtype))
        start_R = torch.linalg.svdvals(self.scale * self.B0_OR @ self.A0_RI)[: self.rank]
        torch.testing.assert_close(start_R, singular_K[-self.rank :], rtol=1e-4, atol=1e-5)
