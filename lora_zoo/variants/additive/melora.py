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
    in the official code; with `num_mini=1` it is LoRA, to the bit.
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
        W_OI, made = context.host.matrix(), []
        rows, columns = W_OI.shape[0] // num_mini, W_OI.shape[1] // num_mini
        for n in range(num_mini):
            block = W_OI[n * rows : (n + 1) * rows, n * columns : (n + 1) * columns]
            name = f"{context.name} mini {n}" if n else context.name
            sizes: dict[str, Any] = {"rank": rank, "scale": self.scale}
            made.append(initial_factors(init, block, seed=context.seed, matrix=name, **sizes)[0])
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
        if n >= 1 and not any(side % n for side in shape):
            return None
        return f"num_mini must divide both sides; got {n}"

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return min(shape) // int(hyper["num_mini"])

    def factors(self) -> tuple[Tensor, Tensor]:
        """Block-diagonal B (O, n R) and A (n R, I)."""
        B, A = (self.scale * self.B_OR).chunk(self.minis), self.A_RI.chunk(self.minis, dim=1)
        return torch.block_diag(*B), torch.block_diag(*A)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """A mini sees its own inputs and moves its own outputs: beside the blocks ΔW is zero."""
        dW_OI = self.weight(W_OI) - W_OI
        rows = zip(dW_OI.chunk(self.minis), self.B_OR.chunk(self.minis), strict=True)
        for n, (of_mini, B_OR) in enumerate(rows):
            for m, block in enumerate(of_mini.chunk(self.minis, dim=1)):
                expected = self.scale * B_OR @ self.A_RI.chunk(self.minis, dim=1)[m] * (n == m)
                torch.testing.assert_close(block, expected, rtol=1e-4, atol=1e-5)
