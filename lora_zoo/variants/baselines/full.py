"""Full fine-tuning: the upper baseline."""

from collections.abc import Sequence

from torch import nn

from lora_zoo.core.adapter import Baseline
from lora_zoo.core.variants import register
from lora_zoo.injection.base_model import base_parameters


@register("full")
class Full(Baseline):
    """Every parameter of the model is trained, biases, norms and embeddings included."""

    title = "Full fine-tuning"
    baseline = True
    paper = "-"
    equation = "W' = W + ΔW, every parameter trained"

    @classmethod
    def fully_trained(cls, model: nn.Module, modules_to_save: Sequence[str] | None) -> list[str]:
        return list(base_parameters(model))
