"""Merges of the factors A and B of ΔW = s B A, each by itself: what PEFT's `add_weighted_adapter` does.

For parity with PEFT, which calls it a very rough approximation: with ΔW = (Σ c_i B_i)(Σ ±c_i A_i) there are
cross terms B_i A_j. c_i = √|w_i s_i|, the sign on A. All adapters of a matrix must have one rank. What PEFT
does to the whole ΔW (`…_svd`, `svd`) are the members without `_of_factors`, `cat` is exact.
"""

import copy
from abc import ABC
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lora_zoo.compositions.merges import DareLinear, DareTies, MagnitudePrune, Ties
from lora_zoo.compositions.task_vectors import TaskVectors
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.composition import register


class ScaledFactors(NamedTuple):
    """ΔW = s B A of one adapter on one matrix."""

    B_OR: Tensor
    A_RI: Tensor
    scale: float


class OfFactors(TaskVectors, ABC):
    """W' = W + B A of merged factors; stands before the merge of task vectors that acts on each of them."""

    of_factors = True
    equal_ranks = True

    def matrix(self, W_OI: Tensor, adapters: Mapping[str, Adapter], place: str) -> Tensor:
        own = {name: self._factors(name, adapters[name], place) for name in self.names if name in adapters}
        if not own or (len(adapters) == 1 and self.leaves(next(iter(own)))):
            return super().matrix(W_OI, adapters, place)
        if self.equal_ranks and len({len(factors.A_RI) for factors in own.values()}) > 1:
            ranks = ", ".join(f"{len(factors.A_RI)} of {name!r}" for name, factors in own.items())
            raise ValueError(f"{self.name} adds factors of one rank; those of {place} are {ranks}")
        B_OR, A_RI = self.product(own, place)
        others = [adapter.weight(W_OI) - W_OI for name, adapter in adapters.items() if name not in own]
        return torch.stack([W_OI + B_OR @ A_RI, *others]).sum(0)

    def product(self, own: Mapping[str, ScaledFactors], place: str) -> tuple[Tensor, Tensor]:
        """(B, A) of the composed ΔW."""
        scaled = {name: self.weights[name] * factors.scale for name, factors in own.items()}
        roots = {name: abs(scale) ** 0.5 for name, scale in scaled.items()}
        signed = {name: root if scaled[name] >= 0 else -root for name, root in roots.items()}
        return (
            self._with(roots).merged({name: f.B_OR for name, f in own.items()}, f"{place}.B"),
            self._with(signed).merged({name: f.A_RI for name, f in own.items()}, f"{place}.A"),
        )

    def _with(self, weights: dict[str, float]) -> TaskVectors:
        twin = copy.copy(self)
        twin.weights = weights
        return twin

    def _factors(self, name: str, adapter: Adapter, place: str) -> ScaledFactors:
        found = adapter.factors()
        if found is None:
            raise ValueError(
                f"{self.name} needs ΔW = B A, and {name!r} ({adapter.name}) has no factors at {place}"
            )
        s = adapter.factor_scale()
        return ScaledFactors(found[0] / s, found[1], s)

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        return self.weighted(changes)


@register("linear_of_factors")
class LinearOfFactors(OfFactors):
    """PEFT's `linear`."""

    equation = "W' = W + (Σ √|w_i s_i| B_i)(Σ ±√|w_i s_i| A_i)"


@register("magnitude_prune_of_factors")
class MagnitudePruneOfFactors(MagnitudePrune, OfFactors):
    """PEFT's `magnitude_prune`."""

    equation = "W' = W + B̂ Â, each factor by magnitude_prune"


@register("ties_of_factors")
class TiesOfFactors(Ties, OfFactors):
    """PEFT's `ties`."""

    equation = "W' = W + B̂ Â, each factor by ties"


@register("dare_linear_of_factors")
class DareLinearOfFactors(DareLinear, OfFactors):
    """PEFT's `dare_linear`, with draws of its own."""

    equation = "W' = W + B̂ Â, each factor by dare_linear"


@register("dare_ties_of_factors")
class DareTiesOfFactors(DareTies, OfFactors):
    """PEFT's `dare_ties`, with draws of its own."""

    equation = "W' = W + B̂ Â, each factor by dare_ties"


@register("cat")
class Cat(OfFactors):
    """PEFT's `cat`: the ranks add up. The ΔW of `weighted_sum`."""

    equation = "W' = W + [B_1 … B_n] [w_1 s_1 A_1; …; w_n s_n A_n]"
    equal_ranks = False

    def product(self, own: Mapping[str, ScaledFactors], place: str) -> tuple[Tensor, Tensor]:
        A_RI = [self.weights[name] * factors.scale * factors.A_RI for name, factors in own.items()]
        return torch.cat([factors.B_OR for factors in own.values()], dim=1), torch.cat(A_RI)


@register("sum_of_factors")
class SumOfFactors(OfFactors):
    """LoRAHub's composition (Huang et al., 2023), arXiv:2307.13269: weights on A as well as on B.

    ΔW is of second order in the weights: w and -w are one model.
    """

    equation = "W' = W + (Σ w_i s_i B_i)(Σ w_i A_i)"

    def product(self, own: Mapping[str, ScaledFactors], place: str) -> tuple[Tensor, Tensor]:
        B_OR = self.weighted({name: factors.scale * factors.B_OR for name, factors in own.items()})
        return B_OR, self.weighted({name: factors.A_RI for name, factors in own.items()})
