"""Every random draw has a seed derived from what it is for: no layer's draw can shift another's."""

import hashlib
import math

import torch
from torch import Tensor, nn


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


class Clock:
    """Counts the model's training-mode forward passes: the dropout masks of one pass share its tick.

    A layer recomputed in the backward pass (gradient checkpointing) therefore sees the same mask again, as
    long as no other forward pass came in between.
    """

    def __init__(self) -> None:
        self.tick, self.read = 0, False
        self.runs = True  # not while the model's passes are those of other adapters

    def advance(self, module: nn.Module, *_: object) -> None:
        """A forward pre-hook for the adapted model."""
        if module.training and self.read and self.runs:
            self._count()

    @torch.compiler.disable  # compiled, a count is a constant: every pass would be a program of its own
    def _count(self) -> None:
        recomputed = torch._C._current_graph_task_id() >= 0  # we are within a backward pass
        self.tick += not recomputed


class Dropout(nn.Module):
    """Inverted dropout whose masks depend on the seed, the layer's name and the pass, and on nothing else.

    Raises ValueError unless 0 <= p < 1.
    """

    def __init__(self, p: float, *, seed: int, name: str, clock: Clock) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"lora_dropout must lie in [0, 1); got {p}")
        self.p, self.seed, self.name, self.clock = p, seed, name, clock
        clock.read |= p > 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * self._mask(x)

    @torch.compiler.disable  # the seed is hashed in Python, from a count
    def _mask(self, x: Tensor) -> Tensor:
        source = generator("dropout", self.seed, self.name, self.clock.tick, device=x.device)
        keep = torch.empty_like(x, requires_grad=False).bernoulli_(1 - self.p, generator=source)
        return keep.div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def kaiming_bound(fan_in: int, gain: float) -> float:
    """He et al. 2015: the uniform bound whose variance is gain² / fan_in."""
    return gain * math.sqrt(3 / fan_in)
