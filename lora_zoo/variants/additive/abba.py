"""ABBA: Highly Expressive Hadamard Product Adaptation for Large Language Models (Singhal et al., 2025)."""

from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import initial_factors
from lora_zoo.core.variants import register
from lora_zoo.variants.hadamard import Hadamard


@register("abba")
class ABBA(Hadamard):
    """§3: LoHa's form, whose second pair begins as the top-r SVD of W, both free; ranks r₁ = r₂ = r.

    At half of LoRA's rank it has LoRA's number of parameters. s = α as in the official code, √α for each
    pair; its A of the pair that begins at zero is √6 times as wide as `init=kaiming`'s.
    """

    paper = "arXiv:2505.14238"
    equation = "W' = W + α (B₁ A₁) ⊙ (B₂ A₂), B₂ A₂ = top-r SVD of W at the start"
    count = "2 * R * (O + I)"
    paper_alpha = 16.0

    @staticmethod
    def scaling(alpha: float, rank: int) -> float:
        return alpha

    def second(self, context: LayerContext) -> tuple[Tensor, Tensor]:
        W_OI = context.host.matrix()
        first, _ = initial_factors(
            "pissa", W_OI, rank=self.rank, scale=1.0, seed=context.seed, matrix=context.name
        )
        return first.B_OR, first.A_RI
