"""BOFT: Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization (Liu et al., ICLR 2024).

Shapes: O out, I in; M factors of N blocks of side B.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.hooks import AdapterHooks, Groups, split
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.oft import BOFTFormat
from lora_zoo.variants.multiplicative.rotations import cayley, divisor_from, turned

MOST, USUAL = 4, 4
"""The most factors, and the least side of blocks, of `auto`: the paper's BOFT(m=4, b=4)."""


class UndecayedGains(AdapterHooks):
    """Leaves the gains, which start at 1, out of weight decay."""

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        return split(named, ".s_O1", {"weight_decay": 0.0}, lr=lr, weight_decay=weight_decay)


@register("boft")
class BOFT(Adapter):
    """§4: a chain of m rotations in blocks, each after a butterfly's shuffle of half blocks; then gains.

    `block_size=auto` is the smallest divisor of I from 4 on, `n_butterfly_factor=auto` the most factors, up
    to 4, that it allows. The gains are those of the official code and PEFT.
    """

    paper = "arXiv:2311.06243"
    equation = "W' = diag(s) W (R_m … R_1)ᵀ, R_i block-diagonal and orthogonal between butterfly permutations"
    count = "n_butterfly_factor * I * block_size + O"
    sized_by = "block_size"
    hooks = UndecayedGains
    peft = BOFTFormat(
        "BOFT",
        {"A_MNBB": "boft_R", "s_O1": "boft_s"},
        {"block_size": ("boft_block_size", 4), "n_butterfly_factor": ("boft_n_butterfly_factor", 1)},
        {"boft_block_num": 0},
        conv1d=True,
    )

    def __init__(
        self,
        context: LayerContext,
        *,
        block_size: int | Literal["auto"] = "auto",
        n_butterfly_factor: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(context)
        O, I = context.shape
        self.block_size, self.n_butterfly_factor = B, M = sides(I, block_size, n_butterfly_factor)
        self.A_MNBB = nn.Parameter(context.full((M, I // B, B, B)))
        self.s_O1 = nn.Parameter(context.full((O, 1), 1.0))

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        I, size = shape[1], hyper["block_size"]
        if size != "auto" and (size < 2 or I % size):
            return f"block_size={size} must be 2 or more and divide its {I} inputs; `auto` finds one"
        B, M = sides(I, size, hyper["n_butterfly_factor"])
        if 1 <= M <= most_factors(I, B):
            return None
        return f"n_butterfly_factor must lie between 1 and {most_factors(I, B)} for blocks of {B}; got {M}"

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        keys = ("block_size", "n_butterfly_factor")
        found = [(s, own, sides(s[1], *(own[key] for key in keys))) for s, own in matrices]
        return super().trainable_count(
            [(s, {**own, **dict(zip(keys, b, strict=True))}) for s, own, b in found]
        )

    def weight(self, W_OI: Tensor) -> Tensor:
        half, effective_OI = self.block_size // 2, W_OI
        for level, A_NBB in enumerate(self.A_MNBB):
            R_NBB, pairs = cayley((A_NBB - A_NBB.mT) / 2), 2**level
            if level:
                effective_OI = effective_OI.unflatten(1, (-1, 2, pairs, half)).transpose(2, 3).flatten(1)
            effective_OI = turned(effective_OI, R_NBB)
            if level:
                effective_OI = effective_OI.unflatten(1, (-1, pairs, 2, half)).transpose(2, 3).flatten(1)
        return self.s_O1 * effective_OI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The angles between neurons stay, and each norm is multiplied by its gain."""
        effective_OI, scaled_OI = self.weight(W_OI), self.s_O1 * W_OI
        torch.testing.assert_close(
            effective_OI @ effective_OI.T, scaled_OI @ scaled_OI.T, rtol=1e-4, atol=1e-5
        )


def most_factors(I: int, block_size: int) -> int:
    """The most factors that blocks of this side allow: one where no half blocks can be shuffled."""
    blocks, factors = I // block_size, 1
    while block_size % 2 == 0 and blocks % 2 == 0:
        blocks, factors = blocks // 2, factors + 1
    return factors


def sides(I: int, block_size: int | str, factors: int | str) -> tuple[int, int]:
    """(B, M), with what `auto` stands for."""
    B = divisor_from(USUAL, I) if block_size == "auto" else int(block_size)
    return B, min(MOST, most_factors(I, B)) if factors == "auto" else int(factors)
