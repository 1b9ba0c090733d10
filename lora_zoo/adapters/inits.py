"""Starts for the factors A (R, I) and B (O, R) of a low-rank update, by name.

`init` is an axis of its own: any start combines with any variant that has free factors. A residual start
(PiSSA, MiLoRA, OLoRA) begins away from zero and keeps its start factors, so that the variant works on
W - s B0 A0 + s B A: the model's function is unchanged at step 0 and the stored base is never written to.
Shapes: O out, I in, R rank.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lora_zoo.adapters import svd
from lora_zoo.adapters.randomness import derived_seed, generator, kaiming_bound, normal, uniform


class Factors(NamedTuple):
    A_RI: Tensor
    B_OR: Tensor


class Source(NamedTuple):
    """What a start may draw from: one generator a factor, and the number from which they were made."""

    A: torch.Generator
    B: torch.Generator
    seed: int


class Draw(Protocol):
    def __call__(self, W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors: ...


@dataclass(frozen=True)
class Init:
    """`zero` names the factors that start at zero ("A", "B", "AB" or none); `source` is the paper."""

    name: str
    draw: Draw
    source: str
    residual: bool = False
    zero: str = ""


INITS: dict[str, Init] = {}
CONTROLS: dict[str, Init] = {}
"""What a start must not be, to see why: one changes the model at step 0, the other never learns."""
_BLANK = [False]
ITERATED = re.compile(r"pissa_(niter|halko)_([1-9]\d?)")  # one to 99 power iterations


def init(name: str, source: str, *, residual: bool = False, zero: str = "") -> Callable[[Draw], Draw]:
    def keep(draw: Draw) -> Draw:
        start = Init(name, draw, source, residual, zero)
        (INITS if residual or zero in ("A", "B") else CONTROLS)[name] = start
        return draw

    return keep


@init("kaiming", "loralib: A ~ U(±1/√I), B = 0 (LoRA §4.1 says Gaussian; the code draws this)", zero="B")
def kaiming(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    O, I = W_OI.shape
    return Factors(uniform(rank, I, kaiming_bound(I, 1 / math.sqrt(3)), source.A), torch.zeros(O, rank))


@init("gaussian", "LoRA §4.1, with PEFT's width: A ~ N(0, 1/R²), B = 0", zero="B")
def gaussian(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    O, I = W_OI.shape
    return Factors(normal(rank, I, 1 / rank, source.A), torch.zeros(O, rank))


@init("orthogonal", "AsLoRA (2402.16842): A has orthonormal rows, B = 0", zero="B")
def orthogonal(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    O, I = W_OI.shape
    return Factors(orthonormal_rows(normal(rank, I, 1.0, source.A)), torch.zeros(O, rank))


@init("zero_a", "LoRA+ (2402.12354) repository's default: A = 0, B ~ U(±1/√R)", zero="A")
def zero_a(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    O, I = W_OI.shape
    # Drawn as (R, O) and transposed, so that a smaller rank's columns are the first ones, up to the bound.
    return Factors(torch.zeros(rank, I), uniform(rank, O, kaiming_bound(rank, 1 / math.sqrt(3)), source.B).T)


@init("embedding", "loralib's embedding layer: A = 0, B ~ N(0, 1)", zero="A")
def embedding(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    O, I = W_OI.shape
    return Factors(torch.zeros(rank, I), normal(rank, O, 1.0, source.B).T)


@init("symmetric", "both factors random, W - s B0 A0 frozen: A and B start alike", residual=True)
def symmetric(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    O, I = W_OI.shape
    A_RI = uniform(rank, I, kaiming_bound(I, 1 / math.sqrt(3)), source.A)
    return Factors(A_RI, uniform(rank, O, kaiming_bound(O, 1 / math.sqrt(3)), source.B).T)


@init("both_random", "control: A ~ U(±1/√I) and B ~ U(±1/√R), so that W' is not W at step 0")
def both_random(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    return Factors(kaiming(W_OI, rank, scale, source).A_RI, zero_a(W_OI, rank, scale, source).B_OR)


@init("both_zero", "control: A = B = 0, where neither factor has a gradient", zero="AB")
def both_zero(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    O, I = W_OI.shape
    return Factors(torch.zeros(rank, I), torch.zeros(O, rank))


@init("pissa", "PiSSA (2404.02948) eq. 2-4: the R principal singular triplets of W", residual=True)
def pissa(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    return balanced(*svd.leading(W_OI, rank), scale)


@init("milora", "MiLoRA (2406.09044) eq. 3-5: the R minor singular triplets of W", residual=True)
def milora(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    return balanced(*svd.trailing(W_OI, rank), scale)


@init("olora", "OLoRA (2406.01775): the first R columns of Q and rows of R in W = QR", residual=True)
def olora(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
    Q_OR = torch.linalg.qr(W_OI[:, :rank]).Q  # the first columns of Q come from the first ones of W alone
    return Factors((Q_OR.T @ W_OI).triu(), Q_OR)


def iterated(kind: str, iterations: int) -> Init:
    """PiSSA's fast SVD. `niter`: the official code's, q = R; `halko`: the paper's reference, q = R + 10."""

    def draw(W_OI: Tensor, rank: int, scale: float, source: Source) -> Factors:
        q = min(rank + (10 if kind == "halko" else 0), *W_OI.shape)
        U_OQ, S_Q, Vh_QI = svd.randomised(W_OI, q, iterations, source.seed)
        return balanced(U_OQ[:, :rank], S_Q[:rank], Vh_QI[:rank], scale)

    return Init(f"pissa_{kind}_{iterations}", draw, "PiSSA §4.1: randomised SVD", residual=True)


def balanced(U_OR: Tensor, S_R: Tensor, Vh_RI: Tensor, scale: float) -> Factors:
    """Factors with s B A = U diag(S) Vh, the singular values shared equally between both."""
    root_R = (S_R / scale).sqrt()
    return Factors(root_R[:, None] * Vh_RI, U_OR * root_R)


def orthonormal_rows(G_RI: Tensor) -> Tensor:
    """Gram-Schmidt on the rows, in order: a smaller rank gives the first of the same rows."""
    Q_IR, T_RR = torch.linalg.qr(G_RI.T)
    return (Q_IR * T_RR.diagonal().sign()).T


def find_init(name: str) -> Init:
    """`name` of `INITS` or `CONTROLS`, `pissa_niter_K` or `pissa_halko_K`. ValueError otherwise."""
    if match := ITERATED.fullmatch(name):
        return iterated(match[1], int(match[2]))
    known = INITS | CONTROLS
    if name not in known:
        from lora_zoo.adapters.registry import unknown

        raise ValueError(unknown("init", name, [*known, "pissa_niter_4", "pissa_halko_4"]))
    return known[name]


def begin(name: str, W_OI: Tensor, *, rank: int, scale: float, seed: int, site: str) -> tuple[Factors, bool]:
    """The factors at step 0 on `W_OI`'s device, float32 or wider, and whether they are residual."""
    chosen = find_init(name)
    O, I = W_OI.shape
    if not 1 <= rank <= min(O, I):
        raise ValueError(f"rank must lie between 1 and the smaller side of {site} ({O} x {I}); got {rank}")
    wide = torch.promote_types(W_OI.dtype, torch.float32)
    if _BLANK[0]:
        return Factors(
            W_OI.new_zeros(rank, I, dtype=wide), W_OI.new_zeros(O, rank, dtype=wide)
        ), chosen.residual
    number = derived_seed("init", seed, site)
    source = Source(generator(number, "A"), generator(number, "B"), number)
    A_RI, B_OR = chosen.draw(W_OI.detach().to(wide), rank, scale, source)
    A_RI, B_OR = (f.to(W_OI.device, wide).contiguous() for f in (A_RI, B_OR))
    return Factors(A_RI, B_OR), chosen.residual


@contextlib.contextmanager
def blank() -> Iterator[None]:
    """Inside, every start is zeros of the right shape: for adapters that are about to be loaded."""
    _BLANK[0] = True
    try:
        yield
    finally:
        _BLANK[0] = False
