"""Rows of a run's record about each matrix that training changed."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_zoo.updates.measures import effective_rank, stable_rank
from lora_zoo.updates.vs_base import row_changes
from lora_zoo.updates.weight_update import DenseUpdate, FactoredUpdate, WeightUpdate

if TYPE_CHECKING:
    from lora_zoo.injection.inject import Injection

KEPT = 64


@torch.no_grad()
def summary(injection: "Injection") -> list[dict[str, Any]]:
    """One row per changed matrix; call it on adapters that are not merged.

    `relative_norm` is ||ΔW||_F / ||W||_F, None where W is zero; `magnitude_change` and `direction_change` are
    those of `RowChanges`; `singular_values` are the 64 largest. Where an adapter has no ΔW, there is no row.
    """
    rows = []
    for name in injection.matrix_names():
        if name in injection.adapters and not injection.variant.pointwise:
            continue  # no ΔW
        _, W_OI, dW_OI = injection.update(name)
        rows.append(_row(update_of(injection, name), W_OI, dW_OI))
    return rows


@torch.no_grad()
def update_of(injection: "Injection", name: str) -> WeightUpdate:
    """The update of one matrix: by its factors where it has them, else dense."""
    adapter = injection.adapters.get(name)
    if adapter is not None:
        injection.variant.require_weight("read as a ΔW")
        if (factors := adapter.factors()) is not None:
            return FactoredUpdate(name, *factors)
    _, W_OI, dW_OI = injection.update(name)
    # a fully trained W' is no sum: its ΔW has no rounding but its own
    return DenseUpdate(name, dW_OI, 0.0 if adapter is None else float(W_OI.norm()))


def _row(update: WeightUpdate, W_OI: Tensor, dW_OI: Tensor) -> dict[str, Any]:
    sigma, base_norm, rows = update.singular_values, float(W_OI.norm()), row_changes(W_OI, dW_OI)
    return {
        "name": update.name,
        "shape": list(update.shape),
        "norm": update.norm,
        "relative_norm": update.norm / base_norm if base_norm else None,
        "stable_rank": stable_rank(sigma),
        "effective_rank": effective_rank(sigma),
        "magnitude_change": rows.magnitude,
        "direction_change": rows.direction,
        "singular_values": sigma[:KEPT].tolist(),
    }
