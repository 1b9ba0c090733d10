"""R-Drop: R-Drop: Regularized Dropout for Neural Networks (Liang et al., NeurIPS 2021)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Additive
from lora_zoo.variants.two_passes import TwoPasses


@register("r_drop")
class RDrop(Additive):
    """LoRA with two passes that differ in their dropout, `lora_dropout` and the model's own, and their KL.

    Without any dropout both passes are one, the KL is 0 and this is LoRA at twice the cost. The authors' code
    leaves it to the task whether the KL is a sum or a mean; here it is a mean over what the loss judges.
    """

    title = "R-Drop"
    paper = "arXiv:2106.14448"
    equation = "W' = W + (α/r) B A, + α_KL KL of two passes, each with dropout of its own"
    count = "R * (O + I)"
    hooks = TwoPasses
    defaults: ClassVar[Mapping[str, Any]] = {"lora_dropout": 0.1}
