"""What a run's record says of each matrix that training changed."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_zoo.updates.delta import Delta, Dense, Product
from lora_zoo.updates.measures import effective_rank, stable_rank
from lora_zoo.updates.vs_base import row_changes

if TYPE_CHECKING:
    from lora_zoo.inject.injection import Injection

KEPT = 64


@torch.no_grad()
def summary(injection: "Injection") -> list[dict[str, Any]]:
    """One row per changed matrix; call it on adapters that are not merged.

    `relative_norm` is ||ΔW||_F / ||W||_F, None where W is zero; `magnitude_change` and `direction_change` are
    those of `Rows`; `singular_values` are the 64 largest.
    """
    rows = []
    for name in injection.matrix_names():
        _, W_OI, dW_OI = injection.update(name)
        rows.append(_row(delta_of(injection, name), W_OI, dW_OI))
    return rows


@torch.no_grad()
def delta_of(injection: "Injection", name: str) -> Delta:
    """The ΔW of one matrix: by its factors where it has them, else as it is."""
    adapter = injection.adapters.get(name)
    if adapter is not None and (factors := adapter.factors()) is not None:
        return Product(name, *factors)
    _, W_OI, dW_OI = injection.update(name)
    # W' of a matrix that trains in full is no sum: its ΔW has no rounding but its own
    return Dense(name, dW_OI, 0.0 if adapter is None else float(W_OI.norm()))


def _row(delta: Delta, W_OI: Tensor, dW_OI: Tensor) -> dict[str, Any]:
    sigma, base_norm, rows = delta.singular_values, float(W_OI.norm()), row_changes(W_OI, dW_OI)
    return {
        "name": delta.name,
        "shape": list(delta.shape),
        "norm": delta.norm,
        "relative_norm": delta.norm / base_norm if base_norm else None,
        "stable_rank": stable_rank(sigma),
        "effective_rank": effective_rank(sigma),
        "magnitude_change": rows.magnitude,
        "direction_change": rows.direction,
        "singular_values": sigma[:KEPT].tolist(),
    }


__all__ = ["delta_of", "summary"]
