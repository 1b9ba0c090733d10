"""PiSSA: Principal Singular Values and Singular Vectors Adaptation (Meng et al., NeurIPS 2024)."""

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive


@register("pissa")
class PiSSA(Additive):
    """§3: trains the r principal singular triplets, W_res = W - s B₀ A₀ stays frozen.

    `init=pissa` is the exact SVD; `pissa_niter_K` the official fast one, `pissa_halko_K` with oversampling.
    """

    paper = "arXiv:2404.02948"
    equation = "W' = W + (α/r) (B A - B₀ A₀), B₀ A₀ = top-r SVD of W"
    count = "R * (O + I)"
    peft = LoraFormat(reads=False)

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: float = 8.0,
        init: str = "pissa",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context, rank=rank, scale=alpha / rank, init=init, lora_dropout=lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.name.startswith("pissa")

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        assert self.A0_RI is not None and self.B0_OR is not None
        singular_R = torch.linalg.svdvals(W_OI.to(self.A0_RI.dtype))[: self.rank]
        start_R = torch.linalg.svdvals(self.scale * self.B0_OR @ self.A0_RI)[: self.rank]
        torch.testing.assert_close(start_R, singular_R, rtol=1e-4, atol=1e-5)
