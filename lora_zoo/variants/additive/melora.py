"""MELoRA: Mini-Ensemble Low-Rank Adapters for Parameter-Efficient Fine-Tuning (Ren et al., ACL 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.init import Init, initial_factors
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled


@register("melora")
class MELoRA(Product, Scaled):
    """§3.2: n mini LoRAs, each on its own n-th of the inputs and of the outputs: ΔW is block-diagonal.

    Its rank is up to n r with the parameters of LoRA's rank r. `rank` and the scale are those of a mini, as
    in the official code; with `num_mini=1` it is LoRA, to the bit. Sides that n does not divide, which fail
    in that code, are cut as evenly as can be.
    """

    paper = "arXiv:2402.17263"
    equation = "W' = W + (α/r) diag(B₁ A₁, …, Bₙ Aₙ)"
    count = "R * (O + I)"

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        num_mini: int = 2,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.scale, self.minis = self.scale_of(alpha, rank), num_mini
        made, sizes = [], dict[str, Any](rank=rank, scale=self.scale, seed=context.seed)
        for n, rows in enumerate(context.host.matrix().tensor_split(num_mini)):
            name = f"{context.name} mini {n}" if n else context.name
            block = rows.tensor_split(num_mini, dim=1)[n]
            made.append(initial_factors(init, block, matrix=name, **sizes)[0])
        self.A_RI = nn.Parameter(torch.cat([first.A_RI for first in made], dim=1))
        self.B_OR = nn.Parameter(torch.cat([first.B_OR for first in made]))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        """Starts with one factor at zero, without statistics, which are of the whole matrix."""
        return init.zero in ("A", "B") and not init.needs

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        n = hyper["num_mini"]
        return None if 1 <= n <= min(shape) else f"num_mini must lie between 1 and {min(shape)}; got {n}"

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return min(shape) // int(hyper["num_mini"])

    def factors(self) -> tuple[Tensor, Tensor]:
        """Block-diagonal B (O, n R) and A (n R, I)."""
        B, A = self.blocks()
        return torch.block_diag(*B), torch.block_diag(*A)

    def blocks(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Each mini's s B (O / n, R), and its A (R, I / n)."""
        return (self.scale * self.B_OR).tensor_split(self.minis), self.A_RI.tensor_split(self.minis, dim=1)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """A mini sees its own inputs and moves its own outputs: beside the blocks ΔW is zero."""
        B, A = self.blocks()
        for n, rows in enumerate((self.weight(W_OI) - W_OI).tensor_split(self.minis)):
            for m, block in enumerate(rows.tensor_split(self.minis, dim=1)):
                torch.testing.assert_close(block, B[n] @ A[m] * (n == m), rtol=1e-4, atol=1e-5)
