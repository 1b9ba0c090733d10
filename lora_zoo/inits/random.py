"""Random initialisations of A (R, I) and B (O, R), most with one factor at zero.

Shapes: O out, I in, R rank.
"""

import math

import torch
from torch import Tensor

from lora_zoo.core.init import Factors, RandomSource, register
from lora_zoo.core.seeding import kaiming_bound, normal, uniform


@register("kaiming", "loralib: A ~ U(±1/√I), B = 0 (LoRA §4.1 says Gaussian; the code draws this)", zero="B")
def kaiming(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    return Factors(uniform(rank, I, kaiming_bound(I, 1 / math.sqrt(3)), source.A), torch.zeros(O, rank))


@register("gaussian", "LoRA §4.1, with PEFT's width: A ~ N(0, 1/R²), B = 0", zero="B")
def gaussian(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    return Factors(normal(rank, I, 1 / rank, source.A), torch.zeros(O, rank))


@register("init_a", "Init[A] (2406.08447) §3: A ~ N(0, 1/I), B = 0", zero="B")
def init_a(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    return Factors(normal(rank, I, I**-0.5, source.A), torch.zeros(O, rank))


@register("init_b", "Init[B] (2406.08447) §3: A = 0, B ~ N(0, 1/R)", zero="A")
def init_b(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    return Factors(torch.zeros(rank, I), normal(rank, O, rank**-0.5, source.B).T)


@register("init_ab", "Init[AB] (2505.23194): A ~ N(0, 1/I), B ~ N(0, 1/O), nothing subtracted", moves=True)
def init_ab(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    """Entries of the order of 1/√width in both, of which β = 1 multiples are taken."""
    O, _ = W_OI.shape
    return Factors(init_a(W_OI, rank, scale, source).A_RI, normal(rank, O, O**-0.5, source.B).T)


def _odd(shape: tuple[int, int], rank: int) -> str:
    return f"its factors are orthogonal in pairs, so that rank must be even; got {rank}" if rank % 2 else ""


@register(
    "orthogonal_pair",
    "PEFT's init_lora_weights='orthogonal': A, B ≠ 0 in orthogonal halves of the rank, so that B A = 0",
    refusal=_odd,
)
def orthogonal_pair(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    (O, I), half = W_OI.shape, rank // 2
    Q_RR = torch.linalg.qr(normal(rank, rank, 1.0, source.A).double())[0]
    G_IP, G_OP = (normal(half, side, 0.1, s).T for side, s in ((I, source.A), (O, source.B)))
    return Factors((G_IP.double() @ Q_RR[0::2]).T, G_OP.double() @ Q_RR[1::2])


@register("orthogonal", "AsLoRA (2402.16842): A has orthonormal rows, B = 0", zero="B")
def orthogonal(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    return Factors(orthonormal_rows(normal(rank, I, 1.0, source.A)), torch.zeros(O, rank))


@register("zero_a", "LoRA+ (2402.12354) repository's default: A = 0, B ~ U(±1/√R)", zero="A")
def zero_a(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    # Drawn as (R, O) and transposed, so that a smaller rank's columns are the first ones, up to the bound.
    return Factors(torch.zeros(rank, I), uniform(rank, O, kaiming_bound(rank, 1 / math.sqrt(3)), source.B).T)


@register("embedding", "loralib's embedding layer: A = 0, B ~ N(0, 1)", zero="A")
def embedding(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    return Factors(torch.zeros(rank, I), normal(rank, O, 1.0, source.B).T)


@register("symmetric", "both factors random, W - s B0 A0 frozen: A and B start alike", residual=True)
def symmetric(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    A_RI = uniform(rank, I, kaiming_bound(I, 1 / math.sqrt(3)), source.A)
    return Factors(A_RI, uniform(rank, O, kaiming_bound(O, 1 / math.sqrt(3)), source.B).T)


@register("both_random", "control: A ~ U(±1/√I), B ~ U(±1/√R)", moves=True, control=True)
def both_random(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    return Factors(kaiming(W_OI, rank, scale, source).A_RI, zero_a(W_OI, rank, scale, source).B_OR)


@register("both_zero", "control: A = B = 0, where neither factor has a gradient", zero="AB", control=True)
def both_zero(W_OI: Tensor, rank: int, scale: float, source: RandomSource) -> Factors:
    O, I = W_OI.shape
    return Factors(torch.zeros(rank, I), torch.zeros(O, rank))


def orthonormal_rows(G_RI: Tensor) -> Tensor:
    """Gram-Schmidt on the rows, in order: a smaller rank gives the first of the same rows."""
    Q_IR, T_RR = torch.linalg.qr(G_RI.T)
    return (Q_IR * T_RR.diagonal().sign()).T
