"""Measures of the spread of a spectrum. σ (K,) are singular values, largest first.

Each is 0 where all σ are 0, and NaN where one is.
"""

import math

import torch
from torch import Tensor

NOISE = 1e-6
"""Singular values below this part of the first count as noise in ranks."""


def stable_rank(sigma_K: Tensor) -> float:
    """‖ΔW‖_F² / ‖ΔW‖₂² = Σσ² / σ₁², from 1 to the rank."""
    top = _top(sigma_K)
    return float((sigma_K / top).square().sum()) if top else 0.0


def effective_rank(sigma_K: Tensor) -> float:
    """exp of the entropy of σ / Σσ (Roy & Vetterli 2007; of σ and not of σ²), from 1 to the rank."""
    if not _top(sigma_K):
        return 0.0
    signal = sigma_K[~(sigma_K < NOISE * sigma_K.max())]
    return math.exp(float(torch.special.entr(signal / signal.sum()).sum()))


def participation_ratio(sigma_K: Tensor) -> float:
    """(Σσ²)² / Σσ⁴, from 1 to the rank."""
    top = _top(sigma_K)
    if not top:
        return 0.0
    energy_K = (sigma_K / top).square()
    return float(energy_K.sum() ** 2 / energy_K.square().sum())


def numerical_rank(sigma_K: Tensor) -> float:
    """The number of σ above 1e-6 of the first."""
    top = _top(sigma_K)
    return top if math.isnan(top) else int((sigma_K > NOISE * top).sum())


def energy(sigma_K: Tensor) -> Tensor:
    """(K,): the part of Σσ² that the first 1, 2, … of them hold."""
    squares_K = sigma_K.square()
    return squares_K.cumsum(0) / squares_K.sum().clamp_min(torch.finfo(squares_K.dtype).tiny)


def energy_rank(sigma_K: Tensor, part: float = 0.9) -> float:
    """The least number of σ that hold this part of Σσ²."""
    top = _top(sigma_K)
    if math.isnan(top):
        return top
    return 0 if not top else int((energy(sigma_K) < part * (1 - 1e-12)).sum()) + 1


def _top(sigma_K: Tensor) -> float:
    return float(sigma_K.max()) if len(sigma_K) else 0.0
