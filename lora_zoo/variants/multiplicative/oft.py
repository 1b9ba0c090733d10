"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning (Qiu et al., NeurIPS 2023).

Shapes: O out, I in; N blocks of side B, each of E = B (B - 1) / 2 angles.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.oft import OFTFormat
from lora_zoo.variants.multiplicative.rotations import cayley, divisor_from, turned

USUAL = 32
"""PEFT's block, the least that `block_size=auto` takes."""


@register("oft")
class OFT(Adapter):
    """§3.2: a block-diagonal rotation of the inputs, each block the Cayley map of a skew-symmetric Q.

    `block_size=auto` is the smallest divisor of I from 32 on. `num_cayley_neumann_terms` puts PEFT's series
    1 + 2Q + 2Q² + … + Qᵗ⁻¹ in the map's place, which turns the other way and only nearly; 0 is exact.
    """

    paper = "arXiv:2306.07280"
    equation = "W' = W diag(R₁ … R_N)ᵀ, R = (1 - Q)(1 + Q)⁻¹"
    count = "I * (block_size - 1) // 2"
    sized_by = "block_size"
    peft = OFTFormat("OFT", {"Q_NE": "oft_R.weight"}, {"block_size": ("oft_block_size", 32)}, {"r": 0})

    def __init__(
        self,
        context: LayerContext,
        *,
        block_size: int | Literal["auto"] = "auto",
        num_cayley_neumann_terms: int = 0,
    ) -> None:
        super().__init__(context)
        self.terms, I = num_cayley_neumann_terms, context.shape[1]
        self.block_size = B = block_of(I, block_size)
        self.Q_NE = nn.Parameter(context.full((I // B, B * (B - 1) // 2)))

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        I, size, terms = shape[1], hyper["block_size"], hyper["num_cayley_neumann_terms"]
        if terms and terms < 4:
            return f"num_cayley_neumann_terms must be 0 (exact), or 4 or more; got {terms}"
        if size == "auto" or (size >= 2 and I % size == 0):
            return None
        return f"block_size={size} must be 2 or more and divide its {I} inputs; `auto` finds one that does"

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        sized = [(s, {**own, "block_size": block_of(s[1], own["block_size"])}) for s, own in matrices]
        return super().trainable_count(sized)

    def rotations(self) -> Tensor:
        """R (N, B, B)."""
        B = self.block_size
        upper = torch.triu_indices(B, B, 1, device=self.Q_NE.device)
        Q_NBB = self.Q_NE.new_zeros(len(self.Q_NE), B * B)
        Q_NBB = Q_NBB.index_copy(1, upper[0] * B + upper[1], self.Q_NE).view(-1, B, B)
        Q_NBB = Q_NBB - Q_NBB.mT
        return series(Q_NBB, self.terms) if self.terms else cayley(Q_NBB)

    def weight(self, W_OI: Tensor) -> Tensor:
        return turned(W_OI, self.rotations())

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Angles and norms of neurons stay within each block; under the series only nearly."""
        if self.terms:
            return
        B, effective_OI = self.block_size, self.weight(W_OI)
        for old, new in zip(W_OI.to(effective_OI.dtype).split(B, 1), effective_OI.split(B, 1), strict=True):
            torch.testing.assert_close(new @ new.T, old @ old.T, rtol=1e-5, atol=1e-5)


def series(Q_NBB: Tensor, terms: int) -> Tensor:
    """PEFT's truncated Neumann series of (1 + Q)(1 - Q)⁻¹, whose last term counts once."""
    power = one_BB = torch.eye(Q_NBB.shape[-1], device=Q_NBB.device, dtype=Q_NBB.dtype)
    found = one_BB.expand_as(Q_NBB)
    for _ in range(terms - 2):
        power = power @ Q_NBB
        found = found + 2 * power
    return found + power @ Q_NBB


def block_of(I: int, block_size: int | str) -> int:
    """The side of the blocks of I inputs."""
    return divisor_from(USUAL, I) if block_size == "auto" else int(block_size)
