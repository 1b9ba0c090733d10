"""Initialisations from the singular values and vectors of W, or its QR decomposition.

Shapes: O out, I in, R rank.
"""

import torch
from torch import Tensor

from lora_zoo.core.init import Draw, Factors, RandomSource, register, register_family
from lora_zoo.inits import svd


@register("pissa", "PiSSA (2404.02948) eq. 2-4: the R principal singular triplets of W", residual=True)
def pissa(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return balanced(*svd.leading(W_OI, rank), scale)


@register("milora", "MiLoRA (2406.09044) eq. 3-5: the R minor singular triplets of W", residual=True)
def milora(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return balanced(*svd.trailing(W_OI, rank), scale)


@register("olora", "OLoRA (2406.01775): the first R columns of Q and rows of R in W = QR", residual=True)
def olora(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    Q_OR = torch.linalg.qr(W_OI[:, :rank]).Q  # the first columns of Q come from the first ones of W alone
    return Factors((Q_OR.T @ W_OI).triu(), Q_OR)


@register("right_vectors", "AsLoRA (2402.16842): A = the R principal right singular vectors, B = 0", zero="B")
def right_vectors(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return Factors(svd.leading(W_OI, rank).Vh_RI, W_OI.new_zeros(len(W_OI), rank))


@register_family("pissa_niter", "PiSSA §4.1: randomised SVD, the official code's q = R", residual=True)
def pissa_niter(iterations: int) -> Draw:
    return _randomised(iterations, oversampling=0)


@register_family("pissa_halko", "PiSSA §4.1: randomised SVD, the paper's q = R + 10", residual=True)
def pissa_halko(iterations: int) -> Draw:
    return _randomised(iterations, oversampling=10)


def _randomised(iterations: int, oversampling: int) -> Draw:
    def draw(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
        q = min(rank + oversampling, *W_OI.shape)
        U_OQ, S_Q, Vh_QI = svd.randomised(W_OI, q, iterations, source.seed)
        return balanced(U_OQ[:, :rank], S_Q[:rank], Vh_QI[:rank], scale)

    return draw


def balanced(U_OR: Tensor, S_R: Tensor, Vh_RI: Tensor, scale: float) -> Factors:
    """Factors with s B A = U diag(S) Vh, the singular values shared equally between both."""
    root_R = (S_R / scale).sqrt()
    return Factors(root_R[:, None] * Vh_RI, U_OR * root_R)
