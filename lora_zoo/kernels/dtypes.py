"""Dtypes of the products: the frozen one in x's, the branch in its factors', often a wider one.

The input is widened for the branch while it is used and kept as it is, and a sum is rounded once.
Shapes: N tokens, O out, I in, R rank.
"""

import torch
from torch import Tensor

from lora_zoo.core.dtypes import at_least_float32


def formable(x: Tensor, B_OR: Tensor) -> bool:
    """True if W + B A may stand in for W; rounded to a narrow dtype it would lose a small B A."""
    return x.dtype == B_OR.dtype == at_least_float32(x.dtype)


def plus_(y: Tensor, one: Tensor, two: Tensor, scale: float = 1.0) -> Tensor:
    """y += scale · one two in place; where y is narrower than the factors, the sum alone is rounded."""
    if y.dtype == one.dtype:
        return y.addmm_(one, two, alpha=scale)
    one = one if scale == 1 else scale * one
    if (y.dtype, one.dtype) == (torch.bfloat16, torch.float32):
        # In two bfloat16 parts the factors keep 16 bits, and nothing of y's size is made in float32.
        (a, da), (b, db) = bfloat16_parts(one), bfloat16_parts(two)
        return y.addmm_(torch.cat([a, a, da], dim=1), torch.cat([b, db, b]))
    return y.add_(one @ two)


def bfloat16_parts(t: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is the float32 `t`, to 16 bits."""
    high = t.to(torch.bfloat16)
    return high, (t - high).to(torch.bfloat16)
