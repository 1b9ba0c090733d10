"""Quantisers in pure torch: a matrix as codes and scales, their values, and the bits that they take.

They serve research on CPUs, and as the reference of the packages with fast kernels.
Shapes: O out, I in, N weights in row-major order, K levels, G groups of a row.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_zoo.core.dtypes import wide

Stored = dict[str, Tensor]
"""`codes` (O, I) of integers, and the scales by name."""
SCALE_BITS = 32
"""Bits of a scale, and of a group's least weight."""
NF_OFFSET = 0.9677083
"""QLoRA's greatest probability of the normal quantiles, 1 - (1/32 + 1/30)/2 as its code rounds it."""


class Quantizer(ABC):
    """A quantiser of matrices (O, I): `decode(encode(W))` are the values near W that its codes stand for."""

    @abstractmethod
    def encode(self, W_OI: Tensor) -> Stored:
        """Codes and scales. ValueError for a matrix that it cannot cut into groups."""

    @abstractmethod
    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        """The values (O, I), in float32 or wider."""

    @abstractmethod
    def bits(self, O: int, I: int) -> float:
        """Bits a weight of such a matrix: its code, and its share of the scales."""

    def rounded(self, W_OI: Tensor) -> Tensor:
        """The values (O, I) that the codes of `W_OI` stand for."""
        return self.decode(self.encode(W_OI))


@dataclass(frozen=True)
class BlockLevels(Quantizer):
    """The nearest of K levels in [-1, 1], times the largest |w| of each block of the flattened matrix.

    QLoRA (2305.14314) §3: `levels` are those of NF4, `block` is 64, and `nested` its double quantisation:
    the scales, less their mean, are quantised themselves, to 8 bits in blocks of 256. A value between two
    levels at equal distance becomes the lower one.
    """

    levels: tuple[float, ...] = field(repr=False)
    block: int = 64
    nested: bool = False

    def encode(self, W_OI: Tensor) -> Stored:
        W_OI = wide(W_OI)
        W_BN = _in_blocks(W_OI, self.block)
        scale_B = W_BN.abs().amax(1)
        unit_BN = W_BN * (1 / scale_B.clamp_min(torch.finfo(scale_B.dtype).tiny))[:, None]
        codes = self._nearest(unit_BN).to(torch.uint8)
        made = {"codes": codes.flatten()[: W_OI.numel()].view_as(W_OI)}
        if not self.nested:
            return made | {"scales": scale_B}
        offset = scale_B.mean()
        inner = _of_scales().encode(scale_B[None] - offset)
        return made | {"scales": inner["codes"][0], "outer": inner["scales"], "offset": offset}

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        scale_B = stored["scales"]
        if self.nested:
            inner = {"codes": scale_B[None], "scales": stored["outer"]}
            scale_B = _of_scales().decode(inner)[0] + stored["offset"]
        codes = stored["codes"]
        unit_BN = self._table(scale_B)[_in_blocks(codes, self.block).long()]
        values: Tensor = (unit_BN * scale_B[:, None]).flatten()[: codes.numel()].view(codes.shape)
        return values

    def bits(self, O: int, I: int) -> float:
        blocks = math.ceil(O * I / self.block)
        scales = blocks * SCALE_BITS
        if self.nested:  # and one offset a matrix, which is not counted
            scales = 8 * blocks + SCALE_BITS * math.ceil(blocks / _of_scales().block)
        return math.log2(len(self.levels)) + scales / (O * I)

    def _table(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float32, device=like.device).to(like.dtype)

    def _nearest(self, unit: Tensor) -> Tensor:
        table_K = self._table(unit)
        return torch.bucketize(unit, (table_K[1:] + table_K[:-1]) / 2)


@dataclass(frozen=True)
class Uniform(Quantizer):
    """2^b evenly spaced values from the least to the greatest weight of each group of a row's inputs.

    QA-LoRA (2309.14717) §3.3: w = scale q + zero, q = round((w - zero) / scale), zero the least weight.
    """

    width: int = 4
    group: int = 32

    def encode(self, W_OI: Tensor) -> Stored:
        O, I = W_OI.shape
        if I % self.group:
            raise ValueError(f"group_size={self.group} must divide a layer's {I} inputs")
        W_OGL = wide(W_OI).view(O, -1, self.group)
        zero_OG, most_OG = W_OGL.amin(2), W_OGL.amax(2)
        scale_OG = (most_OG - zero_OG) / (2**self.width - 1)
        steps_OG = scale_OG.masked_fill(scale_OG == 0, 1)
        codes = ((W_OGL - zero_OG[..., None]) / steps_OG[..., None]).round().to(torch.uint8)
        return {"codes": codes.view(O, I), "scales": scale_OG, "zeros": zero_OG}

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        O, I = stored["codes"].shape
        q_OGL = stored["codes"].view(O, -1, self.group)
        return (q_OGL * stored["scales"][..., None] + stored["zeros"][..., None]).view(O, I)

    def bits(self, O: int, I: int) -> float:
        return self.width + 2 * SCALE_BITS / self.group


def normal_float(width: int = 4) -> tuple[float, ...]:
    """QLoRA's NF-b: 2^b quantiles of the normal distribution, with an exact 0, scaled to [-1, 1]."""
    half = 2 ** (width - 1)
    upper = _quantiles(half + 1)
    lower = _quantiles(half)
    levels = torch.tensor([*(-lower).tolist(), 0.0, *upper.flip(0).tolist()], dtype=torch.float64)
    return tuple((levels / levels.max()).tolist())


def _quantiles(points: int) -> Tensor:
    """The normal quantiles of `points` probabilities from `NF_OFFSET` down to 1/2, less that of 1/2."""
    return torch.special.ndtri(torch.linspace(NF_OFFSET, 0.5, points, dtype=torch.float64)[:-1])


def even(width: int = 4) -> tuple[float, ...]:
    """2^b evenly spaced levels from -1 to 1."""
    return tuple(torch.linspace(-1, 1, 2**width, dtype=torch.float64).tolist())


@functools.cache
def dynamic() -> tuple[float, ...]:
    """The 256 levels of 8-bit dynamic numbers (2110.02861 §2.2): a sign, a moving exponent, a fraction."""
    found = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (10 ** (exponent - 6)) * (edges[:-1] + edges[1:]) / 2
        found += [*middles.tolist(), *(-middles).tolist()]
    return tuple(sorted(found))


@functools.cache
def _of_scales() -> BlockLevels:
    return BlockLevels(dynamic(), block=256)


def _in_blocks(tensor: Tensor, block: int) -> Tensor:
    """The entries in row-major order as rows of `block`, the last one filled up with zeros."""
    flat = tensor.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


__all__ = ["BlockLevels", "Quantizer", "Stored", "Uniform", "dynamic", "even", "normal_float"]
