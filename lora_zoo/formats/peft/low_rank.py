"""Low-rank factors B A of an update (O, I): at its exact rank, or at a chosen one with the error.

Shapes: O out, I in, R rank, K = min(O, I).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


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
