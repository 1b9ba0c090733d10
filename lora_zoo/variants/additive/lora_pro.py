"""LoRA-Pro: Are Low-Rank Adapters Properly Optimized? (Wang et al., ICLR 2025)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lora_zoo.core.dtypes import wide
from lora_zoo.core.hooks import AdapterHooks, Groups, MakeOptimizer
from lora_zoo.core.seeding import generator, normal
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.components import inverse_gram
from lora_zoo.variants.low_rank import Additive, LowRank

Pair = tuple[Tensor, Tensor]


class NearestGradients(AdapterHooks):
    """Theorems 2.1-2.3: the factors' gradients become those that move W most nearly as full fine-tuning does.

    `mode=adamw` is the paper's algorithm 2: Adam's moments are those of the equivalent gradient (O, I), the
    step that they give is fitted once more, and decay is decoupled. The state is that of full fine-tuning.
    `mode=gradient` leaves the fitted gradients to any optimiser: algorithm 1 is that with plain SGD. Both act
    after clipping. Singular Gram matrices have pseudoinverses, where the official code adds 1e-8 to their
    diagonals; it also corrects the moments' bias as if a step more had been taken, and takes s = 2 always.
    """

    def __init__(
        self, adapters: Mapping[str, LowRank], *, mode: Literal["adamw", "gradient"] = "adamw"
    ) -> None:
        super().__init__(adapters)
        self.mode = mode

    def optimizer(self, groups: Groups, make: MakeOptimizer) -> Optimizer:
        optimizer = make(groups)
        if self.mode == "adamw" and not all(
            {"betas", "eps"} <= group.keys() for group in optimizer.param_groups
        ):
            raise ValueError(
                "lora_pro: mode=adamw takes betas and eps from an Adam, and "
                f"{type(optimizer).__name__} has none; use trainer.optim=adamw_torch or mode=gradient"
            )
        optimizer.register_step_pre_hook(self.step if self.mode == "adamw" else self.replace)
        return optimizer

    @torch.no_grad()
    def replace(self, *_: Any) -> None:
        """Put the fitted gradients in the place of the factors' own."""
        for adapter in self.adapters.values():
            A_RI, B_OR = adapter.A_RI, adapter.B_OR
            if A_RI.grad is not None and B_OR.grad is not None:  # a step that is skipped has no gradients
                found = fitted(wide(A_RI), wide(B_OR), (wide(A_RI.grad), wide(B_OR.grad)), adapter.scale)
                A_RI.grad, B_OR.grad = (grad.to(p.dtype) for p, grad in zip((A_RI, B_OR), found, strict=True))

    @torch.no_grad()
    def step(self, optimizer: Optimizer, *_: Any) -> None:
        """Step the factors, which are left without gradients: the optimiser steps what trains beside them."""
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for adapter in self.adapters.values():
            factors, s = (adapter.A_RI, adapter.B_OR), adapter.scale
            gradients = [wide(p.grad) for p in factors if p.grad is not None]
            if len(gradients) < 2:
                continue
            (A_RI, B_OR), (own_A, own_B) = map(wide, factors), gradients
            group = group_of[id(adapter.B_OR)]
            dA_RI, dB_OR = fitted(A_RI, B_OR, (own_A, own_B), s)
            G_OI = adam(optimizer.state[adapter.B_OR], s * (B_OR @ dA_RI + dB_OR @ A_RI), group)
            steps = fitted(A_RI, B_OR, (s * B_OR.T @ G_OI, s * G_OI @ A_RI.T), s)
            for p, step in zip(factors, steps, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * step)
                p.grad = None

    @torch.no_grad()
    def law(self) -> None:
        """Only what lies outside B's columns and A's rows at once is missed, by the least change of both."""
        for adapter in self.adapters.values():
            A_RI, B_OR, s = adapter.A_RI.double(), adapter.B_OR.double(), adapter.scale
            G_OI = normal(len(B_OR), A_RI.shape[1], 1.0, generator("law")).to(A_RI)
            own_A, own_B = s * B_OR.T @ G_OI, s * G_OI @ A_RI.T
            dA_RI, dB_OR = fitted(A_RI, B_OR, (own_A, own_B), s)
            left_OI = G_OI - B_OR @ torch.linalg.pinv(B_OR) @ G_OI
            missed_OI = left_OI - left_OI @ torch.linalg.pinv(A_RI) @ A_RI
            torch.testing.assert_close(s * (B_OR @ dA_RI + dB_OR @ A_RI), G_OI - missed_OI)
            torch.testing.assert_close((dA_RI - own_A) @ A_RI.T, B_OR.T @ (dB_OR - own_B))


def fitted(A_RI: Tensor, B_OR: Tensor, gradients: Pair, scale: float) -> Pair:
    """The pair (dA, dB) for which s (B dA + dB A) is nearest to ∂L/∂W, from ∂L/∂A and ∂L/∂B.

    Of the pairs that are equally near, B (X A) - (B X) A = 0 for any X, the one nearest to the `gradients`.
    """
    own_A, own_B = gradients
    dA_RI = inverse_gram(B_OR.T, 0.0) @ own_A / scale**2
    dB_OR = own_B @ inverse_gram(A_RI, 0.0) / scale**2
    dB_OR = dB_OR - B_OR @ (inverse_gram(B_OR.T, 0.0) @ (B_OR.T @ dB_OR))
    X_RR = sylvester(B_OR.T @ B_OR, A_RI @ A_RI.T, -dA_RI @ A_RI.T)
    return dA_RI + X_RR @ A_RI, dB_OR - B_OR @ X_RR


def sylvester(P_RR: Tensor, Q_RR: Tensor, C_RR: Tensor) -> Tensor:
    """The least X with P X + X Q = C, where P and Q are positive semidefinite."""
    (p_R, U_RR), (q_R, V_RR) = torch.linalg.eigh(P_RR), torch.linalg.eigh(Q_RR)
    sums_RR = p_R[:, None] + q_R
    least = len(p_R) * torch.finfo(p_R.dtype).eps * sums_RR.max()
    return U_RR @ (U_RR.T @ C_RR @ V_RR / sums_RR).where(sums_RR > least, 0) @ V_RR.T


def adam(state: dict[str, Any], G_OI: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Adam's step for a matrix with gradient G (O, I), without the rate; its moments are kept in `state`."""
    if not state:
        state |= {"step": torch.tensor(0.0), "exp_avg": 0 * G_OI, "exp_avg_sq": 0 * G_OI}
    (beta1, beta2), mean_OI, square_OI = group["betas"], state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1
    mean_OI.lerp_(G_OI, 1 - beta1)
    square_OI.lerp_(G_OI * G_OI, 1 - beta2)
    taken = float(state["step"])
    root_OI = (square_OI / (1 - beta2**taken)).sqrt() + group["eps"]
    return mean_OI / (1 - beta1**taken) / root_OI


@register("lora_pro")
class LoRAPro(Additive):
    """LoRA's forward pass; only the optimiser's steps differ."""

    title = "LoRA-Pro"
    paper = "arXiv:2407.18242"
    equation = "W' = W + (α/r) B A, steps with s (B dA + dB A) nearest to full fine-tuning's"
    count = "R * (O + I)"
    peft = LoraFormat(reads=False)
    hooks = NearestGradients
