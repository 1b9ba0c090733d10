"""One batch, several adapters: each row uses one adapter; W x is computed once for all rows.

Shapes: N rows of all groups together, L the longest group's positions, … a layer's own axes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_zoo.injection.entries import Entries, output_of


class RowGroup(NamedTuple):
    """The rows of one adapter, in the order of the batch, and how many positions of them are not padding."""

    name: str
    rows: int
    length: int


def batched_forward(
    row_groups: Sequence[RowGroup], entries: Mapping[str, Entries], x: Tensor, base: Tensor
) -> Tensor:
    """The layer's output for `x` (N, …); each group's rows use the adapter of its name, if there is one.

    `base` is the frozen layer's output. An adapter receives its rows without the padding that other groups
    need, so that it sees (and drops out) what it would see alone. ValueError where rows cannot be separated.
    """
    if not any(group.name in entries for group in row_groups):
        return base
    parts = zip(row_groups, _split(row_groups, x), _split(row_groups, base), strict=True)
    found = [
        output_of(own_x, own, entries[group.name]) if group.name in entries else own
        for group, own_x, own in parts
    ]
    rows = _rows(row_groups, base)
    if _has_positions(row_groups, rows):
        plain = rows.split([group.rows for group in row_groups])
        ends = [part[:, group.length :] for group, part in zip(row_groups, plain, strict=True)]
        found = [torch.cat(pair, dim=1) for pair in zip(found, ends, strict=True)]
    joined = torch.cat(found)
    return joined if rows is base else joined.flatten(0, 1)


def _split(row_groups: Sequence[RowGroup], t: Tensor) -> list[Tensor]:
    """Each group's rows, without its padding."""
    rows = _rows(row_groups, t)
    parts = rows.split([group.rows for group in row_groups])
    if not _has_positions(row_groups, rows):
        return list(parts)
    return [part[:, : group.length] for group, part in zip(row_groups, parts, strict=True)]


def _rows(row_groups: Sequence[RowGroup], t: Tensor) -> Tensor:
    """`t` with the batch's rows first; some layers flatten rows and positions to one axis."""
    N, L = sum(group.rows for group in row_groups), max(group.length for group in row_groups)
    if t.shape[0] == N:
        return t
    if t.shape[0] == N * L:
        return t.unflatten(0, (N, L))
    raise ValueError(f"a layer sees {tuple(t.shape)}, in which {N} rows cannot be separated")


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
