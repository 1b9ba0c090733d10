"""One batch, several adapters: each row uses one adapter; W x is computed once for all rows.

Shapes: N rows of all groups together, L the longest group's positions, … a layer's own axes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lora_zoo.core.composition import Composition
from lora_zoo.injection.entries import Entries, composed, output_of


class RowGroup(NamedTuple):
    """The rows of one adapter, in the order of the batch, and how many positions of them are not padding."""

    name: str
    rows: int
    length: int


class BatchRows:
    """The rows of a batch, group by group; of one in another order, `order` (N,) has each group's numbers.

    `active` maps a group's name to the adapters that act on its rows together, its priors first.
    """

    order: Tensor | None = None
    back: Tensor | None = None
    """The inverse of `order`."""

    def __init__(
        self, groups: Sequence[RowGroup], active: Mapping[str, Sequence[str]], composition: Composition
    ) -> None:
        self.groups, self.active, self.composition = tuple(groups), active, composition

    def live(self, entries: Mapping[str, Entries]) -> list[dict[str, Entries]]:
        """Of the adapters in `entries`, those that act on each group."""
        names = (self.active.get(group.name, ()) for group in self.groups)
        return [{name: entries[name] for name in own if name in entries} for own in names]

    def rows(self, t: Tensor) -> Tensor:
        """`t` with the batch's rows first; some layers flatten rows and positions to one axis."""
        N, L = sum(group.rows for group in self.groups), max(group.length for group in self.groups)
        if t.shape[0] == N:
            return t
        if t.shape[0] == N * L:
            return t.unflatten(0, (N, L))
        raise ValueError(f"a layer sees {tuple(t.shape)}, in which {N} rows cannot be separated")

    def at_once(self, live: Sequence[Mapping[str, Entries]], x: Tensor, base: Tensor) -> Tensor | None:
        """The output for all rows by one operation, where there is a way; None: group by group."""
        return None

    def gathered(self, rows: Tensor) -> Tensor:
        """`rows` (N, …) with each group's together."""
        return rows if self.order is None else rows.index_select(0, self.order.to(rows.device))

    def scattered(self, rows: Tensor) -> Tensor:
        """`rows` (N, …), each group's together, in the order of the batch."""
        return rows if self.back is None else rows.index_select(0, self.back.to(rows.device))


_GETTERS = ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")
_FACTS = {Tensor.size, Tensor.dim, Tensor.numel, *(getattr(Tensor, name).__get__ for name in _GETTERS)}


class UnreadWeight(Tensor):
    """Stands for a weight that the input decides: its shape, dtype and device can be read, no more."""

    reason: str

    @classmethod
    def of(cls, stored: Tensor, reason: str) -> Self:
        made = stored.detach().as_subclass(cls)
        made.reason = reason
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"<{self.reason}>"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _FACTS:
            found = (arg.reason for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, cls))
            raise ValueError(next(found, "there is no one weight that could be read, not called"))
        return super().__torch_function__(func, types, args, kwargs or {})


def batched_forward(batch: BatchRows, entries: Mapping[str, Entries], x: Tensor, base: Tensor) -> Tensor:
    """The layer's output for `x` (N, …); each group's rows use the adapter of its name, if there is one.

    `base` is the frozen layer's output. An adapter receives its rows without the padding that other groups
    need, so that it sees (and drops out) what it would see alone. ValueError where rows cannot be separated.
    """
    live, row_groups = batch.live(entries), batch.groups
    if not any(live):
        return base
    if (whole := batch.at_once(live, x, base)) is not None:
        return whole
    every_x, rows = batch.gathered(batch.rows(x)), batch.gathered(batch.rows(base))
    parts = zip(live, _split(row_groups, every_x), _split(row_groups, rows), strict=True)
    found = [
        composed(batch.composition, own, adapters, partial(output_of, own_x, own), "") if adapters else own
        for adapters, own_x, own in parts
    ]
    if _has_positions(row_groups, rows):
        plain = rows.split([group.rows for group in row_groups])
        ends = [part[:, group.length :] for group, part in zip(row_groups, plain, strict=True)]
        found = [torch.cat(pair, dim=1) for pair in zip(found, ends, strict=True)]
    joined = batch.scattered(torch.cat(found))
    return joined if len(joined) == len(base) else joined.flatten(0, 1)


def _split(row_groups: Sequence[RowGroup], rows: Tensor) -> list[Tensor]:
    """Each group's rows, without its padding."""
    parts = rows.split([group.rows for group in row_groups])
    if not _has_positions(row_groups, rows):
        return list(parts)
    return [part[:, : group.length] for group, part in zip(row_groups, parts, strict=True)]


def _has_positions(row_groups: Sequence[RowGroup], rows: Tensor) -> bool:
    """True if `rows` (N, …) has padding on its second axis: not where all groups are of one length."""
    longest = max(group.length for group in row_groups)
    if all(group.length == longest for group in row_groups):
        return False
    tokens = rows.ndim == 2 and not rows.is_floating_point()
    if not tokens and rows.ndim < 3:
        return False
    if rows.shape[1] != longest:
        raise ValueError(f"a layer sees {tuple(rows.shape)}, in which {longest} positions cannot be found")
    return True
