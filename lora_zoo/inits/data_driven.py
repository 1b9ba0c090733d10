"""Initialisations from the data that the model is about to learn.

Shapes: O out, I in, R rank.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_zoo.core.init import Factors, RandomSource, register
from lora_zoo.core.statistics import OF_INPUTS, Statistics
from lora_zoo.inits import svd

RHO = 2
"""EVA §3.3: a matrix gets at most ρ times the rank that it was given."""
GAMMA = 16
"""LoRA-GA's stable scale γ, as in the official code."""
GAMMA_ONE = 128
"""LoRA-One's γ, as in the official code."""
DAMPING = 0.01
"""CorDA's share of the moment's mean diagonal that is added to it, as in the official code."""


def covariance(statistics: Statistics) -> Tensor:
    """The covariance (I, I) of a matrix's inputs: centred, as in the official code and in PEFT."""
    mean_I = statistics["input_mean"]
    return statistics["input_moment"] - torch.outer(mean_I, mean_I)


def principal_directions(statistics: Statistics) -> Tensor:
    """The principal directions of a matrix's inputs as rows (I, I), by descending variance."""
    rows_II = torch.linalg.eigh(covariance(statistics)).eigenvectors.T.flip(0)
    largest_I1 = rows_II.gather(1, rows_II.abs().argmax(1, keepdim=True))
    return rows_II * largest_I1.sign()  # LAPACK's sign is arbitrary


def by_explained_variance(
    statistics: Mapping[str, Statistics], ranks: Mapping[str, int]
) -> Mapping[str, int]:
    """EVA §3.3: the components of all matrices in the order of their explained variance ratios, as many as
    all ranks together; of one matrix at most ρ times its rank.
    """
    candidates = []
    for name, held in statistics.items():
        variance_I = torch.linalg.eigvalsh(covariance(held)).flip(0).clamp_min(0)
        ratio_I = variance_I / variance_I.sum().clamp_min(torch.finfo(variance_I.dtype).tiny)
        candidates += [(-ratio, name) for ratio in ratio_I[: RHO * ranks[name]].tolist()]
    chosen = Counter(name for _, name in sorted(candidates, key=lambda c: c[0])[: sum(ranks.values())])
    return {name: chosen[name] for name in ranks}


@register(
    "eva_uniform",
    "EVA (2410.07170) §3: A = the top R principal directions of the inputs, B = 0; every rank stays",
    zero="B",
    needs=OF_INPUTS,
)
def eva_uniform(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return Factors(principal_directions(source.statistics)[:rank], torch.zeros(W_OI.shape[0], rank))


@register(
    "eva",
    "EVA (2410.07170) §3: A = the top principal directions of the inputs, B = 0; ranks follow the variance",
    zero="B",
    needs=OF_INPUTS,
    allot=by_explained_variance,
)
def eva(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return eva_uniform(W_OI, rank, scale, source)


def _twice_the_rank(shape: tuple[int, int], rank: int) -> str:
    if 2 * rank <= min(shape):
        return ""
    return (
        f"2 R = {2 * rank} singular vectors of the gradient are needed; rank can be {min(shape) // 2} at most"
    )


@register(
    "lora_ga",
    "LoRA-GA (2407.05000), ArB2r: A = O^¼/√γ V[:R]ᵀ, B = O^¼/√γ U[R:2R] of the gradient's SVD, γ = 16",
    residual=True,
    needs=("gradient",),
    refusal=_twice_the_rank,
)
def lora_ga(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    G_OI = source.statistics["gradient"].to(W_OI.dtype)
    U, _, Vh = svd.leading(G_OI, 2 * rank)
    width = W_OI.shape[0] ** 0.25 / GAMMA**0.5
    return Factors(width * Vh[:rank], width * U[:, rank : 2 * rank])


@register(
    "lora_one",
    "LoRA-One (2502.01235) alg. 1: s B A = the best rank-R step along -gradient, √(S/S₁)/√γ each, γ = 128",
    moves=True,
    needs=("gradient",),
)
def lora_one(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    U_OR, S_R, Vh_RI = svd.leading(source.statistics["gradient"].to(W_OI.dtype), rank)
    share_R = (S_R / (GAMMA_ONE * S_R[0].clamp_min(torch.finfo(S_R.dtype).tiny))).sqrt()
    return Factors(share_R[:, None] * Vh_RI, -U_OR * share_R)


def _oriented(W_OI: Tensor, rank: int, scale: float, statistics: Statistics, *, least: bool) -> Factors:
    """CorDA's factors: R singular triplets of W C for the inputs' moment C, the right ones by C⁻¹.

    The factors share √S, of which the unit of C decides the balance: here it is that of E[x xᵀ]. The
    official code divides each sample by its greatest entry, and sums over its positions.
    """
    C_II = statistics["input_moment"].double()
    mean = C_II.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    C_II = C_II + DAMPING * mean * torch.eye(len(C_II), dtype=C_II.dtype, device=C_II.device)
    triplets = (svd.trailing if least else svd.leading)(W_OI.double() @ C_II, rank)
    root_R = (triplets.S_R / scale).sqrt()
    Vh_RI = torch.linalg.solve(C_II, triplets.Vh_RI, left=False)
    return Factors(root_R[:, None] * Vh_RI, triplets.U_OR * root_R)


@register(
    "corda_kpm",
    "CorDA (2406.05223) §3.3, knowledge-preserved: the R least components of W C, C = E[x xᵀ], by C⁻¹",
    residual=True,
    needs=("input_moment",),
)
def corda_kpm(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return _oriented(W_OI, rank, scale, source.statistics, least=True)


@register(
    "corda_ipm",
    "CorDA (2406.05223) §3.3, instruction-previewed: the R greatest components of W C, C = E[x xᵀ], by C⁻¹",
    residual=True,
    needs=("input_moment",),
)
def corda_ipm(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return _oriented(W_OI, rank, scale, source.statistics, least=False)
