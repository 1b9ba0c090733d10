"""A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski, 2023)."""

import math

from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive


@register("rslora")
class RsLoRA(Additive):
    """Theorem 3.2: the update neither vanishes nor explodes with the rank iff its scale is Θ(1/√r)."""

    paper = "arXiv:2312.03732"
    equation = "W' = W + (α/√r) B A"
    count = "R * (O + I)"
    peft = LoraFormat(root=True)

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: float = 8.0,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            context, rank=rank, scale=alpha / math.sqrt(rank), init=init, lora_dropout=lora_dropout
        )
        self.alpha = alpha

    def law(self, W_OI: Tensor) -> None:
        assert math.isclose(self.scale**2 * self.rank, self.alpha**2), "scale² · r must not depend on r"
