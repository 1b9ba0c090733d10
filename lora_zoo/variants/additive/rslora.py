"""A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski, 2023)."""

import math

from torch import Tensor

from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive


@register("rslora")
class RsLoRA(Additive):
    """Theorem 3.2: the update neither vanishes nor explodes with the rank iff its scale is Θ(1/√r)."""

    title = "rsLoRA"
    paper = "arXiv:2312.03732"
    equation = "W' = W + (α/√r) B A"
    count = "R * (O + I)"
    peft = LoraFormat(root=True)
    paper_alpha = 8.0  # stays fixed while the rank varies; LoRA's at rank 8

    @staticmethod
    def scaling(alpha: float, rank: int) -> float:
        return alpha / math.sqrt(rank)

    def law(self, W_OI: Tensor) -> None:
        assert math.isclose(self.scale**2 * self.rank, self.alpha**2), "scale² · r must not depend on r"
