"""The base of compositions of task vectors ΔW_i = W'_i - W.

Each acts on one matrix ΔW (O, I) at a time, as PEFT's forms do: a share of entries, or a standard deviation,
is that of the matrix. Where a paper takes it over the whole model, the member says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lora_zoo.core.composition import Composition
from lora_zoo.core.seeding import generator


def weights_of(names: Sequence[str], weights: Sequence[float] | None) -> dict[str, float]:
    """Name -> weight, in the order of the names; 1 each for None. ValueError for another number of them."""
    given = [1.0] * len(names) if weights is None else list(map(float, weights))
    if len(given) != len(names):
        known = ", ".join(names) or "no adapter"
        raise ValueError(f"weights: one for each of {known} is needed; got {len(given)}")
    return dict(zip(names, given, strict=True))


class TaskVectors(Composition, ABC):
    """W' = W + `merged` of the ΔW_i.

    Adapters that are not in `names` (priors, those that become active later) are added as they are.
    """

    of_outputs = False

    def __init__(self, names: Sequence[str], *, weights: Sequence[float] | None = None) -> None:
        super().__init__(names)
        self.weights = weights_of(self.names, weights)

    def leaves(self, name: str) -> bool:
        return self.weights.get(name, 1.0) == 1.0

    def combine(self, base: Tensor, changed: Mapping[str, Tensor], place: str) -> Tensor:
        changes = {name: own - base for name, own in changed.items()}
        own = {name: changes.pop(name) for name in self.names if name in changes}
        total = base + self.merged(own, place) if own else base
        for more in changes.values():
            total = total + more
        return total

    @abstractmethod
    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        """The composed change of the tensor called `place`, a matrix or a bias.

        `changes` are those of the named adapters that adapt it; that of the others is zero.
        """

    def weighted(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Σ w_i ΔW_i."""
        return torch.stack([self.weights[name] * change for name, change in changes.items()]).sum(0)


def check_density(density: float) -> None:
    """Raise ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(
            f"density is the share of entries that are kept, above 0 and at most 1; got {density}"
        )


def trimmed(change: Tensor, density: float) -> Tensor:
    """The ⌊density n⌋ entries of largest magnitude, 0 elsewhere."""
    check_density(density)
    if density == 1:
        return change
    index = change.abs().flatten().topk(int(density * change.numel())).indices
    kept = torch.zeros_like(change).flatten()
    kept[index] = change.flatten()[index]
    return kept.view_as(change)


def dropped(change: Tensor, density: float, *purpose: object) -> Tensor:
    """Each entry with the probability `density`, over `density`; 0 otherwise: E is `change`.

    The draw belongs to its `purpose`, the same on every device.
    """
    check_density(density)
    if density == 1:
        return change
    drawn = torch.rand(change.shape, generator=generator("dare", *purpose), dtype=torch.float64)
    return torch.where((drawn < density).to(change.device), change / density, 0.0)


def elected(changes: Sequence[Tensor], weights: Sequence[float], elect: str) -> Tensor:
    """TIES' last two steps: a sign for each entry, and the mean of the weighted entries that have it.

    The sign is that of the sum, of the entries ("total") or of their signs ("frequency"); of 0 it is +.
    """
    every = torch.stack(list(changes))
    votes = every.sum(0) if elect == "total" else every.sign().sum(0)
    agree = every.sign() == torch.where(votes >= 0, 1.0, -1.0).to(every)
    factors = every.new_tensor(weights).view(-1, *[1] * (every.ndim - 1))
    return (factors * every * agree).sum(0) / agree.sum(0).clamp_min(1)
