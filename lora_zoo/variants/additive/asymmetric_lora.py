"""Asymmetry in Low-Rank Adapters of Foundation Models (Zhu et al., ICML 2024)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import Init, initial_factors
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive


@register("asymmetric_lora")
class AsymmetricLoRA(Additive):
    """§4: one factor stays as it was drawn, with orthonormal rows; the other begins at zero and is trained.

    `trained=A` is the paper's control: B is what `init` draws for Wᵀ, transposed. With init=right_vectors the
    frozen factor holds W's right singular vectors, or its left ones: the official code's option V takes
    columns of Vᵀ by mistake. With init=kaiming and B trained this is LoRA-FA.
    """

    title = "Asymmetric LoRA"
    paper = "arXiv:2402.16842"
    equation = "W' = W + (α/r) B A, A Aᵀ = 1 and frozen; trained=A: BᵀB = 1 and frozen"
    count = "R * (O if trained == 'B' else I)"
    peft = LoraFormat(reads=False)

    def __init__(
        self,
        context: LayerContext,
        *,
        trained: Literal["A", "B"] = "B",
        init: str = "orthogonal",
        **hyper: Any,
    ) -> None:
        super().__init__(context, init=init, **hyper)
        self.trained = trained
        if trained == "A":
            (B_RO, A_IR), _ = initial_factors(
                self.init,
                context.host.matrix().T,
                rank=self.rank,
                scale=self.scale,
                seed=context.seed,
                matrix=context.name,
            )
            self.A_RI, self.B_OR = (nn.Parameter(f.T.contiguous()) for f in (A_IR, B_RO))
        (self.A_RI if trained == "B" else self.B_OR).requires_grad_(False)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B" and not init.needs

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The frozen rows are orthonormal, and the update lies in their space (its transpose for B's)."""
        dW_OI = self.weight(W_OI) - W_OI
        dW, frozen = (dW_OI, self.A_RI) if self.trained == "B" else (dW_OI.T, self.B_OR.T)
        if self.init in ("orthogonal", "right_vectors"):
            torch.testing.assert_close(frozen @ frozen.T, torch.eye(len(frozen)).to(frozen))
        torch.testing.assert_close(dW @ torch.linalg.pinv(frozen) @ frozen, dW, rtol=1e-4, atol=1e-5)
