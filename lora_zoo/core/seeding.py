"""Every random draw has a seed derived from what it is for: no layer's draw can shift another's."""

import hashlib
import math

import torch
from torch import Tensor


def derived_seed(*purpose: object) -> int:
    """A 63-bit seed from the words that say what the draw is for."""
    digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(*purpose))


def uniform(rows: int, columns: int, bound: float, source: torch.Generator) -> Tensor:
    """U(-bound, bound) as (rows, columns), float64; the first rows of a taller draw are the same numbers."""
    return (2 * torch.rand(rows, columns, generator=source, dtype=torch.float64) - 1) * bound


def normal(rows: int, columns: int, std: float, source: torch.Generator) -> Tensor:
    """N(0, std²) as (rows, columns), float64; the first rows of a taller draw are the same numbers.

    torch's own normal draw fills its last 16 numbers differently when the size changes; an inverse
    distribution function applied to uniform numbers does not.
    """
    u = torch.rand(rows, columns, generator=source, dtype=torch.float64).clamp_min(2.0**-54)
    return torch.special.ndtri(u) * std


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of as many numbers: the first axis, and all others together."""
    return shape[0], math.prod(shape[1:])


def kaiming_bound(fan_in: int, gain: float) -> float:
    """He et al. 2015: the uniform bound whose variance is gain² / fan_in."""
    return gain * math.sqrt(3 / fan_in)
