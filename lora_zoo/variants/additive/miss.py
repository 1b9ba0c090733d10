"""MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure (Kang & Yin, 2024).

Shapes: O out, I in, R rank; M columns of D.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.miss import ShardFormat
from lora_zoo.variants.low_rank import Product


@register("miss")
class MiSS(Product):
    """§3: one small matrix D is added to every shard of r columns of W; the last shard may be narrower.

    Inputs of one place in their shards are summed before D: ΔW has rank r at most. `mini_r` (PEFT's mode
    `mini`) shares D's columns among the outputs as well: a divisor of O, 0 for none. Bone is `bone`.
    """

    paper = "arXiv:2409.15371"
    equation = "W' = W + Dᵀ E, E = (1 1 … 1) of identities (r, r); mini_r: D = (d d … d)"
    count = "R * (mini_r or O)"
    peft = ShardFormat(
        "MiSS", {"D_RM": "miss_block"}, {"rank": ("r", 64), "lora_dropout": ("miss_dropout", 0.0)}
    )
    shard_I: Tensor

    def __init__(
        self, context: LayerContext, *, rank: int = 8, mini_r: int = 0, lora_dropout: float = 0.0
    ) -> None:
        super().__init__(context)
        self.O, I = context.shape
        self.D_RM = nn.Parameter(context.full((rank, mini_r or self.O)))
        shard_I = torch.arange(I, device=self.D_RM.device) % rank
        self.register_buffer("shard_I", shard_I, persistent=False)
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int:
        return shape[1]

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        columns = hyper["mini_r"]
        if columns == 0 or (columns > 0 and shape[0] % columns == 0):
            return None
        return f"mini_r must divide its {shape[0]} outputs, or be 0; got {columns}"

    def factors(self) -> tuple[Tensor, Tensor]:
        D_RO = self.D_RM.repeat(1, self.O // self.D_RM.shape[1])
        return D_RO.T, nn.functional.one_hot(self.shard_I, len(D_RO)).T.to(D_RO.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Every shard of r columns gets the same update."""
        R, dW_OI = len(self.D_RM), self.weight(W_OI) - W_OI
        for begin in range(0, dW_OI.shape[1], R):
            shard = dW_OI[:, begin : begin + R]
            torch.testing.assert_close(shard, dW_OI[:, : shard.shape[1]], rtol=1e-4, atol=1e-5)
