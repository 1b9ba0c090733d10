"""HRA: Householder Reflection Adaptation (Yuan et al., NeurIPS 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import LayerHost
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.plain import PlainFormat


@register("hra")
class HRA(Adapter):
    """§3.1: a chain of r Householder reflections turns the inputs of W; λ = 0 in the paper's terms.

    Neighbours begin alike, so that the chain is the identity at step 0; this takes an even rank. The chain
    is 1 - U T Uᵀ (the compact WY form), so that ΔW is the product of the thin -W U and T Uᵀ.
    """

    paper = "arXiv:2405.17484"
    equation = "W' = W H₁ … H_r, H = 1 - 2 u uᵀ / ‖u‖²"
    count = "R * I"
    peft = PlainFormat("HRA", {"U_IR": "hra_u"}, {"rank": ("r", 8)}, {"apply_GS": False})

    def __init__(self, context: LayerContext, *, rank: int = 8) -> None:
        super().__init__(context)
        I, pairs = context.shape[1], rank // 2
        U_PI = context.uniform("u", (pairs, I), kaiming_bound(pairs, 3**-0.5))
        self.U_IR = nn.Parameter(U_PI.repeat_interleave(2, dim=0).T.contiguous())

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        rank, most = hyper["rank"], cls.largest_rank(shape, hyper)
        if rank % 2 == 0 and rank <= most:
            return None
        return f"rank must be even, as reflections begin in pairs, and at most {most}; got {rank}"

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int:
        return shape[1] // 2 * 2

    def turned(self, W_OI: Tensor) -> tuple[Tensor, Tensor]:
        """(-W U, T Uᵀ), the thin factors of ΔW; T⁻¹ is UᵀU's upper triangle with half its diagonal."""
        with uncast(self.U_IR.device):
            U_IR = nn.functional.normalize(self.U_IR.to(at_least_float32(self.U_IR.dtype)), dim=0)
            gram_RR = U_IR.T @ U_IR
            inverse_RR = gram_RR.triu(1) + gram_RR.diagonal().diag_embed() / 2
            A_RI = torch.linalg.solve_triangular(inverse_RR, U_IR.T, upper=True)
            return -W_OI.to(U_IR.dtype) @ U_IR, A_RI

    def weight(self, W_OI: Tensor) -> Tensor:
        B_OR, A_RI = self.turned(W_OI)
        return W_OI + B_OR @ A_RI

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y = host.base(x)
        return y + host.low_rank(x, *self.turned(host.matrix())).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """An orthogonal map of the inputs keeps every neuron's norm, and the angles between them."""
        effective_OI, W_OI = self.weight(W_OI), W_OI.to(self.U_IR.dtype)
        torch.testing.assert_close(effective_OI @ effective_OI.T, W_OI @ W_OI.T, rtol=1e-5, atol=1e-5)
