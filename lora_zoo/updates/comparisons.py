"""Comparisons of two adapters as pandas DataFrames."""

from collections.abc import Sequence

import pandas as pd
import torch

from lora_zoo.updates import subspaces
from lora_zoo.updates.reading import AdapterUpdates
from lora_zoo.updates.tables import FIRST, where
from lora_zoo.updates.weight_update import WeightUpdate


def comparison(
    one: AdapterUpdates, other: AdapterUpdates, *, factor: str = "right", first: int = FIRST
) -> pd.DataFrame:
    """Compare two adapters, a row for each matrix that both change.

    `cosine` between the ΔW, `phi_1` = φ(1, 1), `phi` = φ(i, j) of the first i and j directions, which are
    `first` or as many as there are, and `random`, what is expected of random ones; `factor` is one of
    `subspaces.DIRECTIONS`. ValueError where they have no matrix in common.
    """
    rows = []
    for name in _common(one, other):
        a, b = one[name], other[name]
        phi = subspaces.similarity(*(subspaces.directions(update, factor)[:first] for update in (a, b)))
        i, j = phi.shape
        dimension = a.shape[1] if factor in ("right", "A") else a.shape[0]
        rows.append(
            {
                **where(name),
                "cosine": subspaces.cosine(a, b),
                "phi_1": float(phi[0, 0]) if phi.numel() else float("nan"),
                "i": i,
                "j": j,
                "phi": float(phi[-1, -1]) if phi.numel() else float("nan"),
                "random": subspaces.expected(i, j, dimension),
            }
        )
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def grid(
    one: WeightUpdate, other: WeightUpdate, *, factor: str = "A", first: Sequence[int] = (8, 64)
) -> pd.DataFrame:
    """φ(i, j) for i and j from 1 to the numbers in `first`: LoRA's figures 3 and 4. Rows i, columns j."""
    pairs = zip((one, other), first, strict=True)
    return _grid(subspaces.similarity(*(subspaces.directions(update, factor)[:n] for update, n in pairs)))


def random_grid(
    dimension: int, first: Sequence[int] = (8, 64), *, ranks: Sequence[int] | None = None, seed: int = 0
) -> pd.DataFrame:
    """φ(i, j) of two random Gaussian matrices (rank, dimension): the last panel of LoRA's figure 4."""
    source = torch.Generator().manual_seed(seed)
    drawn = []
    for rank, n in zip(ranks or first, first, strict=True):
        rows = torch.randn(rank, dimension, generator=source, dtype=torch.float64)
        drawn.append(torch.linalg.svd(rows, full_matrices=False).Vh[:n])
    return _grid(subspaces.similarity(*drawn))


def _grid(phi: torch.Tensor) -> pd.DataFrame:
    index, columns = (range(1, count + 1) for count in phi.shape)
    return pd.DataFrame(phi.numpy(), index=index, columns=columns).rename_axis(index="i", columns="j")


def _common(one: AdapterUpdates, other: AdapterUpdates) -> list[str]:
    found = [name for name in one if name in set(other)]
    if not found:
        raise ValueError(
            f"{one.label} and {other.label} have no matrix in common: {next(iter(one))}, {next(iter(other))}"
        )
    return found
