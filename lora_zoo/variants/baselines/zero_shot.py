"""Zero-shot: the model as it is."""

from collections.abc import Sequence

from torch import nn

from lora_zoo.core.adapter import Baseline
from lora_zoo.core.variants import register


@register("zero_shot")
class ZeroShot(Baseline):
    """Trains nothing: what the others are measured against."""

    title = "Zero-shot"
    baseline = True
    paper = "-"
    equation = "W' = W"

    @classmethod
    def fully_trained(cls, model: nn.Module, modules_to_save: Sequence[str] | None) -> list[str]:
        return []
