"""Merges of task vectors ΔW_i = W'_i - W that need no data: means, trimmed, elected, dropped and ternary."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from lora_zoo.compositions.task_vectors import TaskVectors, check_density, dropped, elected, trimmed
from lora_zoo.core.composition import register


@register("average")
class Average(TaskVectors):
    """The mean over all named adapters; one that does not adapt a matrix counts as ΔW = 0 there."""

    equation = "W' = W + (1/n) Σ ΔW_i"

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names, weights=[1 / max(len(names), 1)] * len(names))

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        return self.weighted(changes)


class Thinned(TaskVectors):
    """A merge that keeps the share `density` of each ΔW_i, here the entries of largest magnitude."""

    def __init__(
        self, names: Sequence[str], *, weights: Sequence[float] | None = None, density: float = 0.2
    ) -> None:
        super().__init__(names, weights=weights)
        check_density(density)
        self.density = density

    def leaves(self, name: str) -> bool:
        return self.density == 1 and super().leaves(name)

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        return self.joined({name: self.thinned(own, name, place) for name, own in changes.items()})

    def thinned(self, change: Tensor, name: str, place: str) -> Tensor:
        """The part that is kept of the ΔW of the adapter `name`."""
        return trimmed(change, self.density)

    def joined(self, thin: Mapping[str, Tensor]) -> Tensor:
        """The composed change of what is kept of each."""
        return self.weighted(thin)


class Dropped(Thinned):
    """A merge of what a draw keeps, which belongs to `seed`, adapter and matrix."""

    def __init__(self, names: Sequence[str], *, seed: int = 0, **hyper: Any) -> None:
        super().__init__(names, **hyper)
        self.seed = seed

    def thinned(self, change: Tensor, name: str, place: str) -> Tensor:
        return dropped(change, self.density, self.seed, name, place)


@register("magnitude_prune")
class MagnitudePrune(Thinned):
    """Task arithmetic of the entries of largest magnitude: PEFT's `magnitude_prune_svd` at full rank."""

    equation = "W' = W + Σ w_i top_density(ΔW_i)"


class Elected(Thinned):
    """A merge by elected signs. Weights do not vote, as in PEFT; without them it is the paper's, λ = 1."""

    def __init__(
        self, names: Sequence[str], *, elect: Literal["total", "frequency"] = "total", **hyper: Any
    ) -> None:
        super().__init__(names, **hyper)
        self.elect = elect

    def joined(self, thin: Mapping[str, Tensor]) -> Tensor:
        return elected([*thin.values()], [self.weights[name] for name in thin], self.elect)


@register("ties")
class Ties(Elected):
    """TIES-Merging: Resolving Interference When Merging Models (Yadav et al., 2023), arXiv:2306.01708.

    Trim, elect, take the mean of those that agree. The paper trims over the whole model, PEFT and this by
    matrix; a tie is + here and in PEFT, and the sign of most entries in the authors' code.
    """

    equation = "W' = W + mean over agreeing i of w_i top_density(ΔW_i)"


@register("dare_linear")
class DareLinear(Dropped):
    """DARE: Language Models are Super Mario (Yu et al., 2024), arXiv:2311.03099, with task arithmetic.

    The draw belongs to `seed`, adapter and matrix: the order of adapters does not matter.
    """

    equation = "W' = W + Σ w_i m_i ⊙ ΔW_i / density, m_i ~ Bernoulli(density)"


@register("dare_ties")
class DareTies(Dropped, Elected):
    """DARE with the election of TIES in the place of the sum."""

    equation = "W' = W + mean over agreeing i of w_i m_i ⊙ ΔW_i / density, m_i ~ Bernoulli(density)"


@register("compeft")
class ComPEFT(Thinned):
    """ComPEFT (Yadav et al., 2023), arXiv:2311.13171: each ΔW_i as signs, zeros and one number.

    τ̃ = scale · std(τ) · sign(top_density(τ)), the standard deviation that of the whole τ. The paper's τ is
    the vector of all adapter parameters, here it is the ΔW of a matrix. A note tells the size: the entropy
    of the signs and 16 bits for the number, which Golomb codes come near to.
    """

    equation = "W' = W + Σ w_i scale std(ΔW_i) sign(top_density(ΔW_i))"

    def __init__(
        self,
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        density: float = 0.2,
        scale: float = 1.0,
    ) -> None:
        super().__init__(names, weights=weights, density=density)
        self.scale = scale
        self.bits: dict[str, tuple[float, int]] = {}
        """Tensor -> the bits of one adapter's, and its parameters."""

    def leaves(self, name: str) -> bool:
        return False

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        self.bits[place] = ternary_bits(next(iter(changes.values())), self.density)
        return super().merged(changes, place)

    def thinned(self, change: Tensor, name: str, place: str) -> Tensor:
        return self.ternary(change)

    def ternary(self, change: Tensor) -> Tensor:
        return (
            self.scale * change.std(correction=int(change.numel() > 1)) * trimmed(change, self.density).sign()
        )

    def notes(self) -> list[str]:
        if not self.bits:
            return []
        bits, parameters = map(sum, zip(*self.bits.values(), strict=True))
        return [f"{bits / parameters:.3g} bits for each parameter of a ΔW, at density {self.density:g}"]


def ternary_bits(change: Tensor, density: float) -> tuple[float, int]:
    """The bits of a ternary tensor with ⌊density n⌋ signs, and n."""
    n = change.numel()
    share = int(density * n) / n
    entropy = sum(-p * math.log2(p / ways) for p, ways in ((share, 2), (1 - share, 1)) if p)
    return n * entropy + 16, n
