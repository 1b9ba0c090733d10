"""Linear probing: the lower baseline that still trains."""

from collections.abc import Sequence

from torch import nn

from lora_zoo.core.adapter import Baseline
from lora_zoo.core.variants import register
from lora_zoo.injection.targets import head_names, parameters_of


@register("linear_probe")
class LinearProbe(Baseline):
    """The modules to save are trained (a classifier, say); without any, the model's own head."""

    title = "Linear probe"
    baseline = True
    paper = "-"
    equation = "W' = W below the head, the head trained"

    @classmethod
    def fully_trained(cls, model: nn.Module, modules_to_save: Sequence[str] | None) -> list[str]:
        if modules_to_save is not None:
            return list(modules_to_save)
        found = head_names(model)
        if not found:
            raise ValueError(
                "linear_probe: the model has no head that is known by name; give modules_to_save=[…]"
            )
        return parameters_of(model, found)
