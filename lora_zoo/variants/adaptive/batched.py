"""Many small matrices of few shapes, worked on with an operation a shape instead of one a matrix."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ByShape:
    """Matrices of all sites, those of one shape side by side: each is worked on with its like at once."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        places = sorted(range(len(matrices)), key=lambda i: tuple(matrices[i].shape))
        self.tensors = [matrices[i] for i in places]
        self.alike = [list(group) for _, group in itertools.groupby(self.tensors, key=lambda m: m.shape)]
        self.entries = sum(m.numel() for m in matrices)
        self.places = places

    def stacked(self) -> list[Tensor]:
        """A tensor (matrices, rows, columns) for each shape."""
        return [torch.stack(group) for group in self.alike]

    def each(self, work: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The result of `work` for each matrix, in the order they were given, from one call a shape."""
        found = [made for stack in self.stacked() for made in work(stack).unbind()]
        return [found[i] for i in invert(self.places)]

    def means(self, flat: Tensor, *, dim: int) -> Tensor:
        """The means of all matrices' entries over `dim`, one matrix after the other as they were given."""
        parts = flat.split([len(group) * group[0].numel() for group in self.alike])
        found = list[Tensor]()
        for part, group in zip(parts, self.alike, strict=True):
            found += part.view(len(group), *group[0].shape).mean(dim).unbind()
        return torch.cat([found[i] for i in invert(self.places)])


def invert(places: Sequence[int]) -> list[int]:
    return sorted(range(len(places)), key=places.__getitem__)


def views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """`flat`, an entry for each of `tensors`' in their order, in their shapes."""
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def deviation(X_NRK: Tensor) -> Tensor:
    """‖X Xᵀ - 1‖_F of each matrix (N,): how far its rows are from orthonormal."""
    gram_NRR = X_NRK @ X_NRK.mT
    return (gram_NRR - torch.eye(gram_NRR.shape[1]).to(gram_NRR)).flatten(1).norm(dim=1)


def sum_squared(norms: Tensor) -> Tensor:
    return norms.square().sum()


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"mean_norm": torch.mean, "sum_squared": sum_squared}
"""A way to add up the deviations of all matrices -> its function."""


def _follow(now: list[Tensor], mean: list[Tensor], beta: float) -> None:
    """Exponential moving averages `mean` of |now|, in place; so is |now|."""
    torch._foreach_abs_(now)
    torch._foreach_lerp_(mean, now, 1 - beta)


def smooth(
    now: Sequence[Tensor], mean: list[Tensor], spread: list[Tensor] | None, betas: Sequence[float]
) -> None:
    """Eq. 9-10 of AdaLoRA, in place: `mean` follows |now|, and `spread` the distance of |now| from it.

    `now` is worked on where its dtype is that of `mean`. Without `spread` one β is enough.
    """
    now = [tensor.to(like.dtype) for tensor, like in zip(now, mean, strict=True)]
    _follow(now, mean, betas[0])
    if spread is not None:
        torch._foreach_sub_(now, mean)
        _follow(now, spread, betas[1])


def sensitivities(tensors: Sequence[Tensor]) -> list[Tensor]:
    """p ∂L/∂p of every entry, 0 for a tensor without a gradient."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in tensors]
    return list(torch._foreach_mul(list(tensors), gradients))
