"""Head-only training (linear probing): the lower baseline that still trains."""

from collections.abc import Sequence

from torch import nn

from lora_zoo.adapters.adapter import Baseline, Plan
from lora_zoo.adapters.registry import register
from lora_zoo.adapters.targets import Targets, heads, parameters_of


@register("head_only")
class HeadOnly(Baseline):
    """The modules to save are trained (a classifier, say); without any, the model's own head."""

    paper = "-"
    equation = "W' = W below the head, the head trained"

    @classmethod
    def plan(cls, model: nn.Module, asked: Targets, in_full: Sequence[str] | None) -> Plan:
        if in_full is not None:
            return Plan([], list(in_full))
        found = heads(model)
        if not found:
            raise ValueError(
                "head_only: the model has no head that is known by name; give modules_to_save=[…]"
            )
        return Plan([], parameters_of(model, found))
