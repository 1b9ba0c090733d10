"""Join the batches of several jobs along their rows, padded on the right to the longest.

Shapes: N rows of all jobs, B of one; L the longest batch's positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_zoo.injection.batched import RowGroup

Inputs = dict[str, Any]
LOSS_INPUTS = ("num_items_in_batch",)  # the loss's, which some models hand down


def tokens_of(batch: Inputs) -> Tensor:
    """The ids or embeddings (B, positions, …) of a batch. ValueError where it has neither."""
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(batch.get(name), Tensor):
            return batch[name]
    raise ValueError(f"the model is fed {', '.join(batch)}; side by side, jobs need input_ids")


def join(row_groups: Sequence[RowGroup], batches: Sequence[Inputs], padding: int) -> Inputs:
    """Join batches into one. ValueError for an input that differs from job to job and is no batch."""
    if len({group.length for group in row_groups}) > 1:
        batches = [_masked(group, batch) for group, batch in zip(row_groups, batches, strict=True)]
    names = dict.fromkeys(name for batch in batches for name in batch if name not in LOSS_INPUTS)
    return {
        name: _joined(name, row_groups, [batch.get(name) for batch in batches], padding) for name in names
    }


def _masked(group: RowGroup, batch: Inputs) -> Inputs:
    """Add a mask to a batch that joining will make longer."""
    if batch.get("attention_mask") is not None:
        return batch
    mask = torch.ones(group.rows, group.length, dtype=torch.long, device=tokens_of(batch).device)
    return batch | {"attention_mask": mask}


def _joined(name: str, row_groups: Sequence[RowGroup], values: Sequence[Any], padding: int) -> Any:
    if not any(isinstance(value, Tensor) for value in values):
        if any(value != values[0] for value in values):
            raise ValueError(f"the jobs' {name} differ: {values}")
        return values[0]
    for group, value in zip(row_groups, values, strict=True):
        if not isinstance(value, Tensor) or value.shape[:1] != (group.rows,):
            raise ValueError(f"{name} is not given for each row of every job")
    longest = max(group.length for group in row_groups)
    fill = padding if name.endswith("input_ids") else 0
    pairs = zip(row_groups, values, strict=True)
    return torch.cat([_padded(group, value, longest, fill) for group, value in pairs])


def _padded(group: RowGroup, value: Tensor, longest: int, fill: int) -> Tensor:
    """Pad `value` (B, group's length, …) on the right to `longest` positions."""
    if group.length == longest or value.ndim < 2 or value.shape[1] != group.length:
        return value
    return pad(value, (*(0, 0) * (value.ndim - 2), 0, longest - group.length), value=fill)
