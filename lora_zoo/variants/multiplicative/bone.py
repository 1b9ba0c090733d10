"""Bone: Block-Affine Adaptation of Large Language Models (Kang, 2024), its structure Bat.

Shapes: O out, I in; W in blocks (B, B): K of them over the outputs, J over the inputs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.miss import BatFormat

LARGEST = 64
"""PEFT's block, the most that `block_size=auto` takes."""


@register("bone")
class Bone(Adapter):
    """§3 (first version of the paper): each row of blocks of W goes through an affine map of its own.

    MiSS, into which the paper turned, is `miss`; in PEFT this is MiSS with `init_weights="bat"`.
    `block_size=auto` is the greatest common divisor of O and I up to 64.
    """

    paper = "arXiv:2409.15371"
    equation = "W'ₖⱼ = Wₖⱼ + Wₖⱼ Dₖ + Dₖ, W in blocks Wₖⱼ (b, b)"
    count = "O * block_size"
    sized_by = "block_size"
    peft = BatFormat("MiSS", {"D_KBB": "miss_block"}, {"block_size": ("r", 64)}, {"init_weights": "bat"})

    def __init__(self, context: LayerContext, *, block_size: int | Literal["auto"] = "auto") -> None:
        super().__init__(context)
        self.block_size = size = block_of(context.shape, block_size)
        self.D_KBB = nn.Parameter(context.full((context.shape[0] // size, size, size)))

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        size = hyper["block_size"]
        if size == "auto" or (size >= 1 and not any(side % size for side in shape)):
            return None
        return f"block_size={size} must divide both sides; `auto` finds one that does"

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        sized = [(s, {**own, "block_size": block_of(s, own["block_size"])}) for s, own in matrices]
        return super().trainable_count(sized)

    def weight(self, W_OI: Tensor) -> Tensor:
        K, B, _ = self.D_KBB.shape
        W_KBJB = W_OI.to(self.D_KBB.dtype).reshape(K, B, -1, B)
        changed = torch.einsum("kajb,kbc->kajc", W_KBJB, self.D_KBB) + self.D_KBB[:, :, None]
        return W_OI + changed.reshape(W_OI.shape)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """W + 1 in each block goes through 1 + D: W'ₖⱼ + 1 = (Wₖⱼ + 1)(1 + Dₖ)."""
        B, one = self.block_size, torch.eye(self.block_size, dtype=self.D_KBB.dtype)
        effective_OI, W_OI = self.weight(W_OI), W_OI.to(one.dtype)
        for k, D in enumerate(self.D_KBB):
            rows = slice(k * B, (k + 1) * B)
            for own, new in zip(W_OI[rows].split(B, 1), effective_OI[rows].split(B, 1), strict=True):
                torch.testing.assert_close(new + one, (own + one) @ (one + D), rtol=1e-4, atol=1e-5)


def block_of(shape: tuple[int, int], block_size: int | str) -> int:
    """The side of the blocks of a matrix (O, I)."""
    if block_size != "auto":
        return int(block_size)
    common = math.gcd(*shape)
    return max(size for size in range(1, min(common, LARGEST) + 1) if common % size == 0)
