"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., ICLR 2022)."""

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive


@register("lora")
class LoRA(Additive):
    """§4.1, eq. 3: h = W x + (α/r) B A x."""

    paper = "arXiv:2106.09685"
    equation = "W' = W + (α/r) B A"
    count = "R * (O + I)"
    peft = LoraFormat()

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: float = 8.0,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context, rank=rank, scale=alpha / rank, init=init, lora_dropout=lora_dropout)
