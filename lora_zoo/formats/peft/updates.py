"""Low-rank updates s B A of single matrices: factored, and joined where one layer holds several of them.

Shapes: O out, I in, R rank, K = min(O, I).
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dtypes import wide
from lora_zoo.core.host import EVERY, Host
from lora_zoo.injection.matrices import TargetMatrix


class LowRankUpdate(NamedTuple):
    """ΔW = s B A of one matrix; `alpha` is known where the user chose it. m: DoRA's magnitudes."""

    matrix: TargetMatrix
    B_OR: Tensor
    A_RI: Tensor
    scale: float
    alpha: float | None = None
    m_O: Tensor | None = None


def as_product(adapter: Adapter, matrix: TargetMatrix) -> LowRankUpdate | None:
    """The update of any adapter with ΔW = B A; None for others."""
    factors = adapter.factors()
    return factors and LowRankUpdate(matrix, factors[0].detach(), factors[1].detach(), 1.0)


def joined(parts: list[LowRankUpdate]) -> LowRankUpdate:
    """One update of the whole layer: A's below each other, each B in its own rows and columns."""
    first = parts[0]
    if not first.matrix.whole:
        return first
    whole: Host = copy.copy(first.matrix.host)
    whole.part = EVERY
    W_OI = wide(whole.matrix())
    A_RI = torch.cat([part.A_RI for part in parts])
    B_OR = A_RI.new_zeros(len(W_OI), len(A_RI))
    m_O = None if first.m_O is None else W_OI.norm(dim=1).to(first.m_O)
    column = 0
    for part in parts:
        columns = slice(column, column + len(part.A_RI))
        rows = torch.arange(len(W_OI))[part.matrix.host.part].to(A_RI.device)
        B_OR[rows, columns] = part.B_OR * (part.scale / first.scale)
        column = columns.stop
        if m_O is not None:
            m_O[rows] = part.m_O
    matrix = TargetMatrix(first.matrix.whole, first.matrix.tensor, "", whole)
    return LowRankUpdate(matrix, B_OR, A_RI, first.scale, None, m_O)


def with_norms(name: str, host: Host, update: LowRankUpdate) -> LowRankUpdate:
    """The same function with a norm in each row of W + ΔW, by which PEFT's DoRA divides.

    A row of zeros gets a direction and the magnitude 0. ValueError where A has no direction to give.
    """
    V_OI = wide(host.matrix()) + update.scale * update.B_OR @ update.A_RI
    empty_O = V_OI.norm(dim=1) == 0
    if not empty_O.any():
        return update
    strongest = int(update.A_RI.norm(dim=1).argmax())
    if update.m_O is None or not update.A_RI[strongest].any():
        raise ValueError(
            f"{name} has a row of zeros, and so has A: PEFT's DoRA divides by the norm of W + ΔW; "
            "python -m lora_zoo.merge writes an ordinary model instead"
        )
    B_OR, m_O = update.B_OR.clone(), update.m_O.clone()
    B_OR[empty_O, strongest] += 1
    m_O[empty_O] = 0
    return update._replace(B_OR=B_OR, m_O=m_O)


class Factored(NamedTuple):
    """dW ≈ B A, and the relative Frobenius error of that."""

    B_OR: Tensor
    A_RI: Tensor
    error: float = 0.0


def factored(dW_OI: Tensor, rank: int, *, beside: float = 0.0) -> Factored:
    """The best product of at most `rank`, at least one. `beside` is the norm of the matrix that dW came from.

    Singular values that are rounding noise are left out: the resulting rank is exact or chosen.
    """
    U_OK, S_K, Vh_KI = torch.linalg.svd(dW_OI.detach().double(), full_matrices=False)
    kept = max(1, min(rank, int((noise(dW_OI, float(S_K.norm()) + beside) < S_K).sum())))
    root_R, whole = S_K[:kept].sqrt(), float(S_K.square().sum())
    error = math.sqrt(float(S_K[kept:].square().sum()) / whole) if whole else 0.0
    dtype = torch.promote_types(dW_OI.dtype, torch.float32)
    return Factored((U_OK[:, :kept] * root_R).to(dtype), (root_R[:, None] * Vh_KI[:kept]).to(dtype), error)


def noise(dW_OI: Tensor, norm: float) -> float:
    """The greatest singular value that rounding alone leaves in a difference of matrices of this norm."""
    return 4 * torch.finfo(dW_OI.dtype).eps * norm


def no_wider(B_OR: Tensor, A_RI: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with at most K columns of B: no layer here takes R > K."""
    smaller = min(len(B_OR), A_RI.shape[1])
    if B_OR.shape[1] <= smaller:
        return B_OR, A_RI
    exact = factored(B_OR.double() @ A_RI.double(), smaller)
    return exact.B_OR.to(B_OR.dtype), exact.A_RI.to(A_RI.dtype)
