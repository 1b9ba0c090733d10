"""LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., ICML 2024)."""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from lora_zoo.core.hooks import AdapterHooks, Groups, split
from lora_zoo.core.init import find_init
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive, LowRank


class Ratio(AdapterHooks):
    """B learns at λ times A's rate, λ = η_B / η_A.

    §5.3's λ = 16 belongs to the authors' start (A = 0, B random); otherwise the best ratio is of order 4.
    """

    def __init__(
        self, adapters: Mapping[str, LowRank], *, loraplus_lr_ratio: float | Literal["auto"] = "auto"
    ) -> None:
        super().__init__(adapters)
        zero_A = all(find_init(adapter.init).zero == "A" for adapter in adapters.values())
        self.ratio = (16.0 if zero_A else 4.0) if loraplus_lr_ratio == "auto" else float(loraplus_lr_ratio)
        if self.ratio <= 0:
            raise ValueError(f"loraplus_lr_ratio must be above 0; got {self.ratio}")

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        return split(named, ".B_OR", {"lr": lr * self.ratio}, lr=lr, weight_decay=weight_decay)

    def law(self) -> None:
        named = {f"{n}.{k}": p for n, a in self.adapters.items() for k, p in a.named_parameters()}
        A, B = self.param_groups(named, lr=1.0, weight_decay=0.0)
        assert B["lr"] == self.ratio * A["lr"]
        assert {id(p) for p in B["params"]} == {id(a.B_OR) for a in self.adapters.values()}


@register("lora_plus")
class LoRAPlus(Additive):
    """LoRA's forward pass; only the optimiser's groups differ."""

    title = "LoRA+"
    paper = "arXiv:2402.12354"
    equation = "W' = W + (α/r) B A, η_B = λ η_A"
    count = "R * (O + I)"
    peft = LoraFormat(reads=False)
    hooks = Ratio
