"""The sum of all changes, and the sum of weighted ones.

Each change is one against the frozen base, also of a multiplicative variant: with W'_1 = Q W and W'_2 = P W
the sum is W + (Q W - W) + (P W - W), not P Q W. The order of activation therefore does not matter.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from lora_zoo.compositions.task_vectors import weights_of
from lora_zoo.core.composition import Composition, register


@register("sum")
class Sum(Composition):
    """PEFT's way with several active LoRAs."""

    equation = "W' = W + Σ (W'_i - W)"

    def combine(self, base: Tensor, changed: Mapping[str, Tensor], place: str) -> Tensor:
        first, *others = changed.values()
        for other in others:
            first = first + (other - base)
        return first


@register("weighted_sum")
class WeightedSum(Composition):
    """Task arithmetic (Ilharco et al., 2023), arXiv:2212.04089, on ΔW: PEFT's `combination_type="cat"`.

    `weights` are in the order of the names, of any sign: a negative one takes a task away. An
    adapter that becomes active later has the weight 1.
    """

    equation = "W' = W + Σ w_i (W'_i - W)"

    def __init__(self, names: Sequence[str], *, weights: Sequence[float]) -> None:
        super().__init__(names)
        self.weights = weights_of(self.names, weights)

    def leaves(self, name: str) -> bool:
        return self.weights.get(name, 1.0) == 1.0

    def combine(self, base: Tensor, changed: Mapping[str, Tensor], place: str) -> Tensor:
        total = base
        for name, own in changed.items():
            total = total + self.weights.get(name, 1.0) * (own - base)
        return total
