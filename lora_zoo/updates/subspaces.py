"""Similarity of the directions of two adapters: Grassmann similarity (LoRA, section 7.2, appendix G).

φ(i, j) = ‖U₁ᵀ U₂‖_F² / min(i, j) of the first i directions of one and the first j of the other, in [0, 1]: 1
where the smaller subspace lies within the greater, max(i, j) / d expected for random subspaces of R^d. With
p = min(i, j) and the projection metric d, φ = 1 - d² / p; the (1 - d²) / p that the paper prints is a slip.
Letters: O out, I in, R rank, K directions, D the space's dimension.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lora_zoo.core.errors import unknown
from lora_zoo.updates.weight_update import FactoredUpdate, WeightUpdate


def right(update: WeightUpdate) -> Tensor:
    """ΔW's right singular vectors (K, I), those of σ = 0 left out: directions of the input."""
    return update.triplets.Vh_RI[: update.rank]


def left(update: WeightUpdate) -> Tensor:
    """ΔW's left singular vectors (K, O), those of σ = 0 left out: directions of the output."""
    return update.triplets.U_OR.T[: update.rank]


def of_A(update: WeightUpdate) -> Tensor:
    """The right singular vectors (K, I) of the factor A, what LoRA's figures 3 and 4 show.

    A residual init's A0 is one block of its rows. ValueError where ΔW has no factors.
    """
    return _independent(_factors(update)[1])


def of_B(update: WeightUpdate) -> Tensor:
    """The left singular vectors (K, O) of the factor B. ValueError where ΔW has no factors."""
    return _independent(_factors(update)[0].T)


DIRECTIONS: Mapping[str, Callable[[WeightUpdate], Tensor]] = {
    "right": right,
    "left": left,
    "A": of_A,
    "B": of_B,
}
"""Name -> the directions of an update as orthonormal rows, the most important one first."""


def directions(update: WeightUpdate, factor: str = "right") -> Tensor:
    """Directions (K, D) of an update by their name in `DIRECTIONS`. ValueError for another name."""
    if factor not in DIRECTIONS:
        raise ValueError(unknown("directions", factor, [*DIRECTIONS]))
    return DIRECTIONS[factor](update)


def similarity(one_KD: Tensor, other_KD: Tensor) -> Tensor:
    """φ(i, j) for every i and j, (K₁, K₂), of orthonormal rows. ValueError where they are of other spaces."""
    if one_KD.shape[1] != other_KD.shape[1]:
        raise ValueError(
            f"directions in {one_KD.shape[1]} and in {other_KD.shape[1]} dimensions cannot be compared"
        )
    i_K1, j_K2 = (torch.arange(1, len(rows) + 1) for rows in (one_KD, other_KD))
    overlap_KK = (one_KD @ other_KD.T).square().cumsum(0).cumsum(1)
    return (overlap_KK / torch.minimum(i_K1[:, None], j_K2)).clamp(0, 1)


def expected(i: int, j: int, dimension: int) -> float:
    """E φ(i, j) of two random subspaces of R^dimension: max(i, j) / dimension."""
    return max(i, j) / dimension


def cosine(one: WeightUpdate, other: WeightUpdate) -> float:
    """The cosine between two ΔW as vectors; 0 where one is zero.

    ValueError where they are of other shapes, or not finite.
    """
    if one.shape != other.shape:
        raise ValueError(f"ΔW of {one.name} is {one.shape}, and {other.shape} in the other adapter")
    one.check_finite()
    other.check_finite()
    scale = one.norm * other.norm
    return max(-1.0, min(1.0, one.inner(other) / scale)) if scale else 0.0


def _factors(update: WeightUpdate) -> tuple[Tensor, Tensor]:
    if not isinstance(update, FactoredUpdate):
        raise ValueError(
            f"ΔW of {update.name} is no product of factors; compare its left or right directions"
        )
    update.check_finite()
    return update.factors()


def _independent(rows: Tensor) -> Tensor:
    """The right singular vectors of `rows`, down to the last σ that is more than rounding."""
    _, S_K, Vh_KD = torch.linalg.svd(rows, full_matrices=False)
    return Vh_KD[torch.finfo(rows.dtype).eps * max(rows.shape) * S_K[:1] < S_K]
