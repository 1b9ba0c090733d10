"""Leading, trailing and randomised singular triplets, computed without the rest and cached on disk.

Small matrices are decomposed exactly and whole. Of larger ones only the wanted end is computed by subspace
iteration, in blocks of a few dozen vectors: a converged result is as exact as LAPACK's in the same precision,
otherwise the matrix is decomposed whole. Blocks are kept as rows: on a CPU a product of a few rows with W is
many times faster than that of Wᵀ with a few columns.
Shapes: O out, I in, R rank, Q block, K = min(O, I); W (O, I) = U (O, K) diag(S) Vh (K, I), S descending.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lora_zoo.inits import cache

SMALL = 512
"""Up to this smaller side a whole decomposition costs little time and memory."""
CHEAP = 2**16
"""Up to this many entries the randomised decomposition is quicker than a look into the cache."""
ROUNDS = 60
"""Filter rounds after which the exact decomposition takes over."""


class Triplets(NamedTuple):
    """Some singular triplets of W: U (O, R), S (R), Vh (R, I)."""

    U_OR: Tensor
    S_R: Tensor
    Vh_RI: Tensor


def leading(W_OI: Tensor, rank: int) -> Triplets:
    """The `rank` greatest singular triplets; those of a smaller rank are the first ones, to the bit."""
    if _whole(W_OI, rank):
        U_OK, S_K, Vh_KI = _exact(W_OI)
        return Triplets(U_OK[:, :rank], S_K[:rank], Vh_KI[:rank])
    width = block(rank)
    found = _kept(W_OI, f"leading {width}", lambda: _leading(W_OI, width))
    return Triplets(found.U_OR[:, :rank], found.S_R[:rank], found.Vh_RI[:rank])


def trailing(W_OI: Tensor, rank: int) -> Triplets:
    """The `rank` smallest singular triplets of the K; a smaller rank's are the last ones, to the bit."""
    if _whole(W_OI, rank):
        U_OK, S_K, Vh_KI = _exact(W_OI)
        return Triplets(U_OK[:, -rank:], S_K[-rank:], Vh_KI[-rank:])
    width = block(rank)
    found = _kept(W_OI, f"trailing {width}", lambda: _trailing(W_OI, width))
    return Triplets(found.U_OR[:, -rank:], found.S_R[-rank:], found.Vh_RI[-rank:])


def randomised(W_OI: Tensor, width: int, iterations: int, seed: int) -> Triplets:
    """Halko et al. (2011), alg. 4.4 and 5.1: `torch.svd_lowrank` on a stream of `seed`, the block as rows."""

    def compute() -> Triplets:
        return _randomised(W_OI, width, iterations, seed)

    if W_OI.numel() <= CHEAP:
        return compute()
    return _kept(W_OI, f"randomised {width} {iterations} {seed}", compute)


def block(rank: int) -> int:
    """The number of triplets computed for `rank`: one number for many ranks, so that these share a result."""
    return max(32, 2 ** math.ceil(math.log2(2 * rank)))


def _whole(W_OI: Tensor, rank: int) -> bool:
    return min(W_OI.shape) <= max(SMALL, 8 * block(rank))


def _exact(W_OI: Tensor) -> Triplets:
    return _kept(W_OI, "exact", lambda: _lapack(W_OI))


def _kept(W_OI: Tensor, how: str, compute: Callable[[], Triplets]) -> Triplets:
    key = cache.key(W_OI, how)
    if key is None:
        return compute()
    names = Triplets._fields
    found = cache.read(key, names, W_OI.device)
    if found is None:
        made = compute()
        cache.write(key, dict(zip(names, made, strict=True)))
        return made
    return Triplets(*(found[name] for name in names))


def _randomised(W_OI: Tensor, width: int, iterations: int, seed: int) -> Triplets:
    O, I = W_OI.shape
    with torch.random.fork_rng(devices=[W_OI.device] if W_OI.is_cuda else []):
        torch.manual_seed(seed)  # svd_lowrank draws from the global stream; the fork gives it back untouched
        tall = O >= I
        start = torch.randn(min(O, I), width, dtype=W_OI.dtype, device=W_OI.device)
    A = W_OI if tall else W_OI.T  # as svd_lowrank, so that equal seeds give equal blocks
    Q = _orthonormal(start.T @ A.T)
    for _ in range(iterations):
        Q = _orthonormal(_orthonormal(Q @ A) @ A.T)
    P_QQ, S_Q, Vh = _lapack(Q @ A)
    U = (P_QQ.T @ Q).T
    return Triplets(U, S_Q, Vh) if tall else Triplets(Vh.T, S_Q, U.T)


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the space of `rows`, as rows."""
    return torch.linalg.qr(rows.T).Q.T


def _start(W_OI: Tensor, width: int) -> Tensor:
    """A random orthonormal block (Q, I) that depends on its shape alone."""
    source = torch.Generator().manual_seed(width)
    drawn = torch.randn(width, W_OI.shape[1], generator=source, dtype=torch.float64)
    return _orthonormal(drawn.to(W_OI.device, W_OI.dtype))


def _leading(W_OI: Tensor, width: int) -> Triplets:
    """Subspace iteration on WᵀW; in a block V the Ritz triplets of W are the SVD of V Wᵀ."""

    def ritz(V_QI: Tensor) -> Triplets:
        P_QQ, S_Q, Uh_QO = torch.linalg.svd(V_QI @ W_OI.T, full_matrices=False)
        return Triplets(Uh_QO.T, S_Q, P_QQ.T @ V_QI)

    def gram(V_QI: Tensor) -> Tensor:
        return V_QI @ W_OI.T @ W_OI

    found = _iterated(W_OI, width, ritz, gram, lambda S_Q: (float(S_Q[-1]) ** 2, float(S_Q[0]) ** 2))
    return found or _ends(_lapack(W_OI), width)


def _trailing(W_OI: Tensor, width: int) -> Triplets:
    """Inverse iteration with the R of W = Q R, whose packed form is the one copy of W that is made.

    From R⁻¹ both sides come out as exact as from LAPACK; u = W v / σ would lose what σ has lost already.
    """
    O, I = W_OI.shape
    if O < I:
        U_OR, S_R, Vh_RI = _trailing(W_OI.T, width)
        return Triplets(Vh_RI.T, S_R, U_OR.T)
    packed_OI, tau_I = torch.geqrf(W_OI)
    R_II = packed_OI[:I]  # what lies below its diagonal is Q's, and not read

    def divided(V_QI: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(R_II, V_QI, upper=True, left=False)

    def ritz(V_QI: Tensor) -> Triplets:
        P_QQ, inverse_Q, Uh_QI = torch.linalg.svd(divided(V_QI), full_matrices=False)
        U_OQ = torch.ormqr(packed_OI, tau_I, torch.nn.functional.pad(Uh_QI, (0, O - I)).T)
        return Triplets(U_OQ.flip(1), (1 / inverse_Q).flip(0), (P_QQ.T @ V_QI).flip(0))

    def inverse_gram(V_QI: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(R_II.T, divided(V_QI), upper=False, left=False)

    found = _iterated(
        W_OI, -width, ritz, inverse_gram, lambda S_Q: (float(S_Q[0]) ** -2, float(S_Q[-1]) ** -2)
    )
    return found or _ends(_lapack(W_OI), -width)


def _iterated(
    W_OI: Tensor,
    width: int,
    ritz: Callable[[Tensor], Triplets],
    operator: Callable[[Tensor], Tensor],
    interval: Callable[[Tensor], tuple[float, float]],
) -> Triplets | None:
    """The first `width` triplets of W (the last ones where it is negative), as exact as its dtype allows.

    Subspace iteration with Chebyshev filters (Rutishauser 1970) in a block twice as wide. `interval` gives
    the operator's eigenvalues at the block's edge, up to which all are damped, and at its far end. None where
    it does not converge.
    """
    V_QI, enough = _start(W_OI, 2 * abs(width)), 16 * torch.finfo(W_OI.dtype).eps * _norm(W_OI)
    for _ in range(ROUNDS):
        try:
            block = ritz(V_QI)
        except torch.linalg.LinAlgError:  # NaN or inf, of a matrix without an inverse
            return None
        found = _ends(block, width)
        if _error(W_OI, found) <= enough:
            return found
        edge, top = interval(block.S_R)
        if not 0 < edge <= top < math.inf:
            return None
        V_QI = _orthonormal(_filtered(operator, block.Vh_RI, edge, top))
    return None


def _filtered(operator: Callable[[Tensor], Tensor], V_QI: Tensor, edge: float, top: float) -> Tensor:
    """A Chebyshev polynomial of the operator times each row: at most 1 on [0, edge], large above it.

    Its degree is such that `top`, the greatest eigenvalue, is blown up by e¹², which float32 still bears.
    """
    degree = max(1, min(24, int(12 / math.acosh(max(2 * top / edge - 1, 1 + 1e-9)))))

    def mapped(rows_QI: Tensor) -> Tensor:
        return operator(rows_QI).mul_(2 / edge).sub_(rows_QI)

    before, now = V_QI, mapped(V_QI)
    for _ in range(degree - 1):
        before, now = now, mapped(now).mul_(2).sub_(before)
    return now


def _error(W_OI: Tensor, found: Triplets) -> float:
    """The greatest distance of W v from σ u and of Wᵀ u from σ v."""
    U_OR, S_R, Vh_RI = found
    left_RO, right_RI = Vh_RI @ W_OI.T - (U_OR * S_R).T, U_OR.T @ W_OI - S_R[:, None] * Vh_RI
    return float(torch.stack([left_RO.norm(dim=1).max(), right_RI.norm(dim=1).max()]).max())


def _norm(W_OI: Tensor) -> float:
    """A lower bound of the greatest singular value, close to it, by power iteration."""
    v_1I = _start(W_OI, 1)
    for _ in range(8):
        v_1I = torch.nn.functional.normalize(v_1I @ W_OI.T @ W_OI, dim=1)
    return float((v_1I @ W_OI.T).norm())


def _ends(found: Triplets, width: int) -> Triplets:
    """A copy of the first `width` triplets, or of the last ones where it is negative."""
    part = slice(None, width) if width > 0 else slice(width, None)
    return Triplets(found.U_OR[:, part].clone(), found.S_R[part].clone(), found.Vh_RI[part].clone())


def _lapack(W_OI: Tensor) -> Triplets:
    try:
        return Triplets(*torch.linalg.svd(W_OI, full_matrices=False))
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"a weight {tuple(W_OI.shape)} that holds NaN or inf has no singular values"
        ) from error


__all__ = ["Triplets", "block", "leading", "randomised", "trailing"]
