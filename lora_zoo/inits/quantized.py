"""Initialisations on a quantised base that look at W from before it: s B A makes up for the error.

Q are the values of the codes, W what was quantised. Those that recode make the codes anew, of W - s B A.
Shapes: O out, I in, R rank.
"""

import torch
from torch import Tensor

from lora_zoo.core.init import Draw, Factors, RandomSource, Recoding, register, register_family
from lora_zoo.core.statistics import ORIGINAL
from lora_zoo.inits import svd
from lora_zoo.inits.spectral import balanced

MOST = 100
"""LQ-LoRA's most iterations, as in the official code."""
LEAST = 1e-4
"""L²QER's least scale of an input, as in the official code."""


def original(W_OI: Tensor, source: RandomSource) -> Tensor:
    """W from before its quantisation, where and as `W_OI`."""
    return source.statistics[ORIGINAL].to(W_OI)


def recoding_of(source: RandomSource) -> Recoding:
    assert source.recoding is not None, "initial_factors refuses a start that recodes without it"
    return source.recoding


def product(factors: Factors, scale: float) -> Tensor:
    return scale * (factors.B_OR @ factors.A_RI)


@register(
    "loftq",
    "LoftQ (2310.08659) alg. 1 with T = 1: s B A = the R principal singular triplets of W - Q",
    moves=True,
    needs=(ORIGINAL,),
)
def loftq(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return balanced(*svd.leading(original(W_OI, source) - W_OI, rank), scale)


@register_family(
    "loftq_iter",
    "LoftQ (2310.08659) alg. 1 with T = K: codes of W - s B A and triplets of W - Q take turns",
    moves=True,
    recodes=True,
    needs=(ORIGINAL,),
)
def loftq_iter(iterations: int) -> Draw:
    def draw(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
        W, recoding = original(W_OI, source), recoding_of(source)
        found = Factors(W_OI.new_zeros(rank, W_OI.shape[1]), W_OI.new_zeros(len(W_OI), rank))
        for _ in range(iterations):
            coded = found
            found = balanced(*svd.leading(W - recoding.rounded(W - product(coded, scale)), rank), scale)
        recoding.take(coded)
        return found

    return draw


@register(
    "qpissa",
    "QPiSSA (2404.02948) §3.3: s B A = the R principal triplets of W, codes of what is left",
    moves=True,
    recodes=True,
    needs=(ORIGINAL,),
)
def qpissa(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return qpissa_iter(1)(W_OI, rank, scale, source)


@register_family(
    "qpissa_iter",
    "QPiSSA (2404.02948) alg. 1, K iterations: triplets of W - Q, from Q = 0, and codes of W - s B A",
    moves=True,
    recodes=True,
    needs=(ORIGINAL,),
)
def qpissa_iter(iterations: int) -> Draw:
    def draw(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
        W, recoding = original(W_OI, source), recoding_of(source)
        left = W
        for _ in range(iterations):
            found = balanced(*svd.leading(left, rank), scale)
            left = W - recoding.rounded(W - product(found, scale))
        recoding.take(found)
        return found

    return draw


@register(
    "lqer",
    "LQER (2402.02446) §3.1: s B A = the R principal singular triplets of W - Q; no training is needed",
    moves=True,
    needs=(ORIGINAL,),
)
def lqer(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return loftq(W_OI, rank, scale, source)


@register(
    "l2qer",
    "L²QER (2402.02446) §3.2: those of (W - Q) diag(a), less diag(a) again; a is E|x| over √(min max)",
    moves=True,
    needs=(ORIGINAL, "input_magnitude"),
)
def l2qer(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    """The official code takes the greatest mean of its batches; here each example weighs the same."""
    a_I = source.statistics["input_magnitude"].to(W_OI).clamp_min(LEAST)
    a_I = a_I / (a_I.min() * a_I.max()).sqrt()
    A_RI, B_OR = balanced(*svd.leading((original(W_OI, source) - W_OI) * a_I, rank), scale)
    return Factors(A_RI / a_I, B_OR)


@register(
    "lq_lora",
    "LQ-LoRA (2311.12023) alg. 1: as QPiSSA's iterations, until the error rises",
    moves=True,
    recodes=True,
    needs=(ORIGINAL,),
)
def lq_lora(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    """Keep the iterate before the rise, as the paper has it; the official code keeps the one after it."""
    return _until_it_rises(W_OI, rank, scale, source, W_OI.new_ones(()))


@register(
    "lq_lora_fisher",
    "LQ-LoRA (2311.12023) eq. 3-4: the error is weighted by √F, its triplets by F's means along both sides",
    moves=True,
    recodes=True,
    needs=(ORIGINAL, "squared_gradient"),
)
def lq_lora_fisher(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return _until_it_rises(W_OI, rank, scale, source, source.statistics["squared_gradient"].to(W_OI))


def _until_it_rises(W_OI: Tensor, rank: int, scale: float, source: RandomSource, F_OI: Tensor) -> Factors:
    W, recoding = original(W_OI, source), recoding_of(source)
    row_O1, col_1I = means(F_OI.expand_as(W))
    left, least = W, float("inf")
    kept: Factors | None = None
    for _ in range(MOST):
        A_RI, B_OR = balanced(*svd.leading(row_O1 * left * col_1I, rank), scale)
        found = Factors(A_RI / col_1I, B_OR / row_O1)
        change = product(found, scale)
        left = W - recoding.rounded(W - change)
        error = float((F_OI.sqrt() * (left - change)).norm())
        if kept is not None and error > least:
            break
        kept, least = found, error
    assert kept is not None
    recoding.take(kept)
    return kept


def means(F_OI: Tensor) -> tuple[Tensor, Tensor]:
    """√ of F's means of each row (O, 1) and of each column (1, I), none of them zero."""
    tiny = torch.finfo(F_OI.dtype).tiny
    least = float(F_OI.max().clamp_min(tiny)) * torch.finfo(F_OI.dtype).eps
    rows, columns = F_OI.mean(1, keepdim=True), F_OI.mean(0, keepdim=True)
    return rows.clamp_min(least).sqrt(), columns.clamp_min(least).sqrt()
