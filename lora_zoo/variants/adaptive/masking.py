"""Masks over the entries of many tensors: what is kept is chosen by scores, exactly, and kept in place.

Letters: N all entries, M matrices of one shape, K components of all sites.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.components import component_axes
from lora_zoo.variants.adaptive.batched import ByShape, sensitivities, smooth, views

Scope = Literal["global", "matrix", "row", "column", "component"]
"""The scores that compete: all entries', those of one tensor, of a row or of a column of it; or whole
components, over all sites, each by the sum of its mean scores in the site's tensors."""


class Masks(nn.Module):
    """One mask over named tensors (`site.A_RI`), in a buffer that is saved and resumed: 1 is kept, 0 is zero.

    The order of the entries is that of `tensors`: by shape, then as they were given, row by row. Of equal
    scores the first in this order are kept. `apply` after each optimiser step: moments move masked entries.
    """

    kept_N: Tensor

    def __init__(self, named: Mapping[str, Tensor], scope: Scope = "global") -> None:
        super().__init__()
        self.scope, self.by_shape = scope, ByShape(list(named.values()))
        self.tensors, names = self.by_shape.tensors, list(named)
        self.names = [names[place] for place in self.by_shape.places]
        like = self.tensors[0] if self.tensors else torch.empty(0)
        self.register_buffer("kept_N", like.new_ones(self.by_shape.entries, dtype=torch.bool))

    def by_name(self) -> dict[str, Tensor]:
        """The mask of each tensor, by its name and in its shape."""
        return dict(self._split(self.kept_N))

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each tensor and its mask."""
        return list(zip(self.tensors, views(self.kept_N, self.tensors), strict=True))

    def _split(self, flat_N: Tensor) -> list[tuple[str, Tensor]]:
        return list(zip(self.names, views(flat_N, self.tensors), strict=True))

    def skipped(self) -> bool:
        """True after a step that was skipped, which has no gradients: masks stay as they are."""
        return all(tensor.grad is None for tensor in self.tensors)

    @torch.no_grad()
    def apply_(self) -> None:
        """Set the masked entries to zero, in place."""
        if self.tensors:
            kept = views(self.kept_N.to(self.tensors[0].dtype), self.tensors)
            torch._foreach_mul_(self.tensors, kept)

    @torch.no_grad()
    def keep(self, scores_N: Tensor, number: Callable[[int], int]) -> None:
        """Of each n scores that compete, keep the `number(n)` highest."""
        if self.scope == "component":
            kept = self._components(scores_N, number)
        elif self.scope == "global":
            kept = [highest(scores_N, number)]
        else:
            kept = [self._within(part_MRC, number) for part_MRC in self._stacks(scores_N)]
        self.kept_N = torch.cat([part.flatten() for part in kept])

    def _stacks(self, flat_N: Tensor) -> list[Tensor]:
        """`flat_N` as (matrices, rows, columns) for each shape; a vector is one row."""
        alike = self.by_shape.alike
        parts = flat_N.split([len(group) * group[0].numel() for group in alike])
        stacks = zip(parts, alike, strict=True)
        return [part.view(len(group), -1, group[0].shape[-1]) for part, group in stacks]

    def _within(self, scores_MRC: Tensor, number: Callable[[int], int]) -> Tensor:
        if self.scope == "matrix":
            return highest(scores_MRC.flatten(1), number)
        return highest(scores_MRC, number) if self.scope == "row" else highest(scores_MRC.mT, number).mT

    def _components(self, scores_N: Tensor, number: Callable[[int], int]) -> list[Tensor]:
        owned = [(*name.rpartition(".")[::2], part) for name, part in self._split(scores_N)]
        totals = dict[str, Tensor]()
        for site, own, part in owned:
            (axis,) = component_axes(own)
            mean_R = part.movedim(axis, 0).reshape(part.shape[axis], -1).mean(1)
            totals[site] = totals[site] + mean_R if site in totals else mean_R
        kept_K = highest(torch.cat(list(totals.values())), number)
        kept = dict(zip(totals, kept_K.split([len(total_R) for total_R in totals.values()]), strict=True))
        found = list[Tensor]()
        for site, own, part in owned:
            (axis,) = component_axes(own)
            found.append(kept[site].expand(part.movedim(axis, -1).shape).movedim(-1, axis))
        return found


class Sensitivity(nn.Module):
    """|p ∂L/∂p| of every entry, smoothed in buffers: one β for the mean, a second for its spread.

    The mean begins at 0. `observe` in `on_after_backward` sees the gradients before they are clipped.
    """

    mean_N: Tensor
    spread_N: Tensor | None

    def __init__(self, tensors: Sequence[Tensor], *betas: float) -> None:
        super().__init__()
        self.tensors, self.betas = list(tensors), betas
        entries = sum(tensor.numel() for tensor in self.tensors)
        empty_N = self.tensors[0].detach().new_zeros(entries) if self.tensors else torch.empty(0)
        self.register_buffer("mean_N", empty_N)
        self.register_buffer("spread_N", empty_N.clone() if len(betas) > 1 else None)

    @torch.no_grad()
    def observe(self) -> None:
        """Follow the gradients of the moment; a tensor without one has a sensitivity of 0."""
        if all(p.grad is None for p in self.tensors):
            return  # a step that is skipped
        spread = None if self.spread_N is None else views(self.spread_N, self.tensors)
        smooth(sensitivities(self.tensors), views(self.mean_N, self.tensors), spread, self.betas)

    def scores(self) -> Tensor:
        """The mean (N), times its spread where that is followed."""
        return self.mean_N if self.spread_N is None else self.mean_N * self.spread_N


def highest(scores: Tensor, number: Callable[[int], int]) -> Tensor:
    """True at the `number(n)` highest of the n scores along the last axis, of equal ones at the first."""
    if not (kept := number(scores.shape[-1])):
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.topk(kept, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, level = scores > least, scores == least
    return above | (level & (level.cumsum(-1) <= kept - above.sum(-1, keepdim=True)))


def share_of(share: float) -> Callable[[int], int]:
    """n -> ⌈share n⌉, without what rounding adds to a whole number."""
    return lambda n: math.ceil(share * n - 1e-9)
