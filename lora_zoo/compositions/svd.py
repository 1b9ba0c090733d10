"""Task arithmetic of low rank: the best of a chosen rank, by singular values."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lora_zoo.compositions.task_vectors import TaskVectors
from lora_zoo.core.composition import register


@register("svd")
class Svd(TaskVectors):
    """PEFT's `combination_type="svd"`: the best approximation of Σ w_i ΔW_i at `rank`, exact for None.

    The relative Frobenius error of each matrix is kept. A bias has no rank: its sum is exact.
    """

    equation = "W' = W + svd_rank(Σ w_i ΔW_i)"

    def __init__(
        self, names: Sequence[str], *, weights: Sequence[float] | None = None, rank: int | None = None
    ) -> None:
        super().__init__(names, weights=weights)
        self.rank = check_rank(rank)
        self.errors: dict[str, float] = {}

    def leaves(self, name: str) -> bool:
        return self.rank is None and super().leaves(name)

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        cut, self.errors[place] = truncated(self.weighted(changes), self.rank)
        return cut

    def notes(self) -> list[str]:
        return note_of(self.errors, self.rank)


def check_rank(rank: int | None) -> int | None:
    """`rank`. ValueError for one below 1."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    return rank


def truncated(change: Tensor, rank: int | None) -> tuple[Tensor, float]:
    """The best matrix of at most this rank, in the Frobenius norm, and its relative error.

    A vector, and a matrix at rank None, stays as it is.
    """
    if rank is None or change.ndim < 2 or rank >= min(change.shape):
        return change, 0.0
    U_OK, S_K, Vh_KI = torch.linalg.svd(change.double(), full_matrices=False)
    cut = (U_OK[:, :rank] * S_K[:rank]) @ Vh_KI[:rank]
    whole = float(S_K.norm())
    return cut.to(change.dtype), float(S_K[rank:].norm()) / whole if whole else 0.0


def note_of(errors: Mapping[str, float], rank: int | None) -> list[str]:
    """A sentence on the worst matrix, where a rank was chosen."""
    if rank is None or not errors:
        return []
    worst = max(errors, key=lambda place: errors[place])
    return [f"largest relative error of a matrix at rank {rank}: {errors[worst]:.2g} ({worst})"]
