"""Flora: Low-Rank Adapters Are Secretly Gradient Compressors (Hao et al., ICML 2024), arXiv:2402.03293.

Shapes: O out, I in, R rank; L and S the longer and the shorter side of a matrix.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lora_zoo.core.seeding import generator

FLAT = 4
"""A matrix whose sides differ by more (an embedding) keeps its momentum whole, as in the official code."""


class Flora(Optimizer):
    """Adafactor whose momentum M (O, I) is kept as C = M P (L, R), for full fine-tuning with little state.

    Algorithm 2: P (S, R) is normal with variance 1/R, made anew from a seed in each step and drawn anew every
    `kappa` steps, when C moves from the old to the new one. As in the official code, the momentum is that of
    Adafactor's update, the rate is times the weight's root mean square (`scale_parameter`), and decay is
    decoupled. Gradients are accumulated as they are: algorithm 1, which compresses their sum, is left out.
    ValueError for numbers outside their ranges.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        rank: int = 8,
        kappa: int = 1000,
        beta1: float = 0.9,
        decay_rate: float = -0.8,
        clip_threshold: float = 1.0,
        scale_parameter: bool = True,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        if min(rank, kappa) < 1 or not 0 <= beta1 < 1 or clip_threshold <= 0:
            raise ValueError(
                "flora needs rank >= 1, kappa >= 1, 0 <= beta1 < 1 and clip_threshold > 0; "
                f"got {rank}, {kappa}, {beta1} and {clip_threshold}"
            )
        own = {"rank": rank, "kappa": kappa, "beta1": beta1, "decay_rate": decay_rate, "seed": seed}
        more = {"clip_threshold": clip_threshold, "scale_parameter": scale_parameter}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **own, **more})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        number = 0
        for group in self.param_groups:
            for p in group["params"]:
                number += 1
                if p.grad is not None:
                    self._move(p, p.grad, group, number)
        return loss

    def _move(self, p: Tensor, G: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        update = normalised(G, state, 1 - state["step"] ** group["decay_rate"])
        if group["beta1"]:
            average = _compressed if compressible(p, group["rank"]) else _whole
            update = average(update, state, group, number)
        update /= (rms(update) / group["clip_threshold"]).clamp_min(1)
        size = rms(p).clamp_min(1e-3) if group["scale_parameter"] else 1.0
        p.mul_(1 - group["lr"] * size * group["weight_decay"]).sub_(group["lr"] * size * update)


def compressible(p: Tensor, rank: int) -> bool:
    """True if the momentum of `p` is kept compressed."""
    return p.ndim == 2 and min(p.shape) >= rank and max(p.shape) <= FLAT * min(p.shape)


def projection(like_LS: Tensor, group: dict[str, Any], number: int, epoch: int) -> Tensor:
    """P (S, R), where E[P Pᵀ] = 1: the same for the same parameter number and epoch of `kappa` steps."""
    source = generator("flora", group["seed"], number, epoch, device=like_LS.device)
    P_SR = like_LS.new_empty(like_LS.shape[1], group["rank"])
    return P_SR.normal_(std=group["rank"] ** -0.5, generator=source)


def normalised(G: Tensor, state: dict[str, Any], beta2: float) -> Tensor:
    """Adafactor's update: the gradient over the root of its mean square; of a matrix the sides' are kept."""
    square = G * G + 1e-30
    means = [square.mean(-1, keepdim=True), square.mean(-2, keepdim=True)] if G.ndim == 2 else [square]
    kept = [
        state.setdefault(f"square_{axis}", torch.zeros_like(mean)).lerp_(mean, 1 - beta2)
        for axis, mean in enumerate(means)
    ]
    if G.ndim == 2:
        return G * (kept[0] / kept[0].mean()).rsqrt() * kept[1].rsqrt()
    return G * kept[0].rsqrt()


def _whole(update: Tensor, state: dict[str, Any], group: dict[str, Any], number: int) -> Tensor:
    """The momentum with this update."""
    kept: Tensor = state.setdefault("momentum", torch.zeros_like(update))
    return kept.lerp_(update, 1 - group["beta1"]).clone()


def _compressed(update_OI: Tensor, state: dict[str, Any], group: dict[str, Any], number: int) -> Tensor:
    """The momentum as far as its compressed form goes, with this update (O, I) whole."""
    wide, kappa, beta1 = update_OI.shape[0] < update_OI.shape[1], group["kappa"], group["beta1"]
    update_LS = update_OI.T if wide else update_OI
    C_LR = state.setdefault("momentum", update_LS.new_zeros(len(update_LS), group["rank"]))
    before, after = (state["step"] - 1) // kappa, state["step"] // kappa
    P_SR = projection(update_LS, group, number, before)
    momentum_LS = C_LR @ P_SR.T
    if after != before:
        P_SR = projection(update_LS, group, number, after)
        C_LR.copy_(momentum_LS @ P_SR)
    C_LR.lerp_(update_LS @ P_SR, 1 - beta1)
    momentum_LS = momentum_LS.lerp_(update_LS, 1 - beta1)
    return momentum_LS.T.clone() if wide else momentum_LS


def rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
