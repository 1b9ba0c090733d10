"""Frozen singular triplets of W, which a variant's tensors are about.

Shapes: O out, I in, R rank.
"""

import torch

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.init import initial_factors
from lora_zoo.inits.svd import Triplets


def singular_space(context: LayerContext, init: str, rank: int) -> Triplets:
    """The U (O, R), σ (R,) and Vh (R, I) that the start `init` (pissa and kin, milora) takes from W.

    The largest entry of each v is positive. Save them: what is trained beside them depends on their signs and
    order, which another machine's SVD may change where the values are nearly equal.
    """
    W_OI = context.host.matrix()
    balanced, _ = initial_factors(init, W_OI, rank=rank, scale=1.0, seed=context.seed, matrix=context.name)
    root_R = balanced.B_OR.norm(dim=0)  # √σ, which both factors share
    divisor_R = root_R.clamp_min(torch.finfo(root_R.dtype).tiny)
    U_OR, Vh_RI = balanced.B_OR / divisor_R, balanced.A_RI / divisor_R[:, None]
    sign_R = Vh_RI.gather(1, Vh_RI.abs().argmax(1, keepdim=True)).sign()[:, 0]
    return Triplets(U_OR * sign_R, root_R.square(), Vh_RI * sign_R[:, None])
