"""Full fine-tuning: the upper baseline."""

from collections.abc import Sequence

from torch import nn

from lora_zoo.adapters.adapter import Baseline, Plan
from lora_zoo.adapters.beneath import base_parameters
from lora_zoo.adapters.registry import register
from lora_zoo.adapters.targets import Targets


@register("full")
class Full(Baseline):
    """Every parameter of the model is trained, biases, norms and embeddings included."""

    paper = "-"
    equation = "W' = W + ΔW, every parameter trained"

    @classmethod
    def plan(cls, model: nn.Module, asked: Targets, in_full: Sequence[str] | None) -> Plan:
        return Plan([], list(base_parameters(model)))
