"""Zero-shot: the model as it is."""

from collections.abc import Sequence

from torch import nn

from lora_zoo.adapters.adapter import Baseline, Plan
from lora_zoo.adapters.registry import register
from lora_zoo.adapters.targets import Targets


@register("zero_shot")
class ZeroShot(Baseline):
    """Trains nothing: what the others are measured against."""

    paper = "-"
    equation = "W' = W"

    @classmethod
    def plan(cls, model: nn.Module, asked: Targets, in_full: Sequence[str] | None) -> Plan:
        return Plan([], [])
