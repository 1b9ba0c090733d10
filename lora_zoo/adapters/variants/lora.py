"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., ICLR 2022)."""

from lora_zoo.adapters.adapter import Additive, Site
from lora_zoo.adapters.exchange.forms import in_peft
from lora_zoo.adapters.exchange.lora import LoraForm
from lora_zoo.adapters.registry import register


@register("lora")
@in_peft(LoraForm())
class LoRA(Additive):
    """§4.1, eq. 3: h = W x + (α/r) B A x."""

    paper = "arXiv:2106.09685"
    equation = "W' = W + (α/r) B A"
    count = "R * (O + I)"

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 8,
        alpha: float = 8.0,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(site, rank=rank, scale=alpha / rank, init=init, lora_dropout=lora_dropout)
