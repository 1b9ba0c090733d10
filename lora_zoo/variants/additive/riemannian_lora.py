"""Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models (Zhang & Pilanci, ICML 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lora_zoo.core.hooks import AdapterHooks, Groups, MakeOptimizer
from lora_zoo.core.seeding import generator, normal
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.components import inverse_gram
from lora_zoo.variants.low_rank import Additive, LowRank


class Preconditioner(AdapterHooks):
    """Eq. 3-4: gradients are those of the metric of the quotient space, whatever the optimiser makes of them.

    ∂A becomes (BᵀB + δ)⁻¹ ∂A and ∂B becomes ∂B (AAᵀ + δ)⁻¹, δ = `reg`, both of the weights before the step
    and after clipping. The official code's δ is 1e-6, and it moves A before it looks at A for B; PEFT's is
    this default.
    """

    def __init__(self, adapters: Mapping[str, LowRank], *, reg: float = 1e-2) -> None:
        super().__init__(adapters)
        if reg <= 0:
            raise ValueError(f"riemannian_lora: reg must be above 0, as B begins at 0; got {reg}")
        self.reg = reg

    def optimizer(self, groups: Groups, make: MakeOptimizer) -> Optimizer:
        optimizer = make(groups)
        optimizer.register_step_pre_hook(self.precondition)
        return optimizer

    @torch.no_grad()
    def precondition(self, *_: Any) -> None:
        for adapter in self.adapters.values():
            A_RI, B_OR = adapter.A_RI, adapter.B_OR
            if A_RI.grad is not None and B_OR.grad is not None:  # a step that is skipped has no gradients
                A_RI.grad, B_OR.grad = preconditioned(A_RI, B_OR, A_RI.grad, B_OR.grad, self.reg)

    @torch.no_grad()
    def law(self) -> None:
        """Of A → M A, B → B M⁻¹, which change no ΔW, a step's first-order change of ΔW does not depend."""
        for adapter in self.adapters.values():
            A_RI, B_OR = adapter.A_RI.double(), adapter.B_OR.double()
            G_OI = normal(len(B_OR), A_RI.shape[1], 1.0, generator("law")).to(A_RI)
            M_RR = torch.eye(len(A_RI)).to(A_RI) + A_RI.new_ones(len(A_RI), len(A_RI)).triu()
            other_OI = moved(M_RR @ A_RI, B_OR @ M_RR.inverse(), G_OI)
            torch.testing.assert_close(other_OI, moved(A_RI, B_OR, G_OI))


def preconditioned(
    A_RI: Tensor, B_OR: Tensor, dA_RI: Tensor, dB_OR: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """The gradients dA (R, I) and dB (O, R) at A and B, preconditioned."""
    return inverse_gram(B_OR.T, damping) @ dA_RI, dB_OR @ inverse_gram(A_RI, damping)


def moved(A_RI: Tensor, B_OR: Tensor, G_OI: Tensor) -> Tensor:
    """The first-order change of B A (O, I) in a step without damping, where G is ∂L/∂(B A)."""
    dA_RI, dB_OR = preconditioned(A_RI, B_OR, B_OR.T @ G_OI, G_OI @ A_RI.T, 0.0)
    return dB_OR @ A_RI + B_OR @ dA_RI


@register("riemannian_lora")
class RiemannianLoRA(Additive):
    """LoRA's forward pass; only the optimiser's steps differ."""

    title = "Riemannian LoRA"
    paper = "arXiv:2402.02347"
    equation = "W' = W + (α/r) B A, steps preconditioned by (BᵀB)⁻¹ and (A Aᵀ)⁻¹"
    count = "R * (O + I)"
    peft = LoraFormat(reads=False)
    hooks = Preconditioner
