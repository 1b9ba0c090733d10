"""Rotations of a matrix's inputs in blocks: Cayley's map, and sides that divide the inputs.

Shapes: O out, I in; N blocks of side B, W as (O, N, B).
"""

import torch
from torch import Tensor

from lora_zoo.core.dtypes import at_least_float32


def cayley(Q_NBB: Tensor) -> Tensor:
    """The rotations (1 - Q)(1 + Q)⁻¹ of skew-symmetric Q, in float32 or wider."""
    Q_NBB = Q_NBB.to(at_least_float32(Q_NBB.dtype))
    one_BB = torch.eye(Q_NBB.shape[-1], device=Q_NBB.device, dtype=Q_NBB.dtype)
    return torch.linalg.solve(one_BB + Q_NBB, one_BB - Q_NBB, left=False)


def turned(W_OI: Tensor, R_NBB: Tensor) -> Tensor:
    """W diag(R₁ … R_N)ᵀ (O, I): the blocks of the inputs turn before W."""
    N, B, _ = R_NBB.shape
    return torch.einsum("onc,nkc->onk", W_OI.to(R_NBB.dtype).reshape(-1, N, B), R_NBB).flatten(1)


def divisor_from(least: int, of: int) -> int:
    """The smallest divisor of `of` that is not less than `least`; `of` itself where there is none."""
    return next((size for size in range(least, of) if of % size == 0), of)
