"""ΔW against the matrix W that it changes: amplification, overlap, intruders, row changes.

Letters: O out, I in, R directions, K = min(O, I). W is the original matrix, also of residual inits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lora_zoo.core.dtypes import wide
from lora_zoo.inits import svd
from lora_zoo.updates.weight_update import WeightUpdate

INTRUDERS, EPSILON = 10, 0.5
"""The number of singular vectors of W' that are tested, and the cosine below which one is an intruder."""


class Amplification(NamedTuple):
    """LoRA's table 7 for one matrix: ‖UᵀWV‖_F with U, V the first `directions` singular vectors of …"""

    directions: int
    """… at most the requested number and the rank of ΔW."""
    own: float
    """… ΔW."""
    base: float
    """… W itself, which is the greatest possible."""
    random: float
    """… a random matrix, expected: ‖W‖_F R / √(O I)."""
    factor: float
    """‖ΔW‖_F / own (H.4): how much stronger ΔW is in its directions than W; NaN where W has nothing there."""


class RowChanges(NamedTuple):
    """DoRA's ΔM and ΔD (2402.09353, eq. 3 and 4): means over the rows of W, which are its output features.

    `magnitude` is mean | ‖W'_o‖ - ‖W_o‖ |, `direction` mean (1 - cos(W'_o, W_o)).
    """

    magnitude: float
    direction: float


def amplification(update: WeightUpdate, W_OI: Tensor, directions: int) -> Amplification:
    """The amplification of W by ΔW. ValueError where W has another shape."""
    _check(update, W_OI)
    R, (U_OK, _, Vh_KI) = min(directions, update.rank), update.triplets
    W64_OI = W_OI.detach().to("cpu", torch.float64)
    own = float((U_OK[:, :R].T @ W64_OI @ Vh_KI[:R].T).norm())
    base = float(svd.leading(wide(W_OI), R).S_R.double().norm()) if R else 0.0
    random = float(W64_OI.norm()) * R / math.sqrt(W_OI.numel())
    return Amplification(R, own, base, random, update.norm / own if own else math.nan)


def overlap(update: WeightUpdate, W_OI: Tensor, side: str = "right") -> Tensor:
    """(K,): the part of ‖ΔW‖_F² along each of W's own singular vectors, largest σ of W first.

    `side` right: the input's, left: the output's. A random ΔW puts 1 / D into each of the D dimensions of
    that side; what is missing to a sum of 1 lies outside of all K. ValueError for another `side` or shape.
    """
    _check(update, W_OI)
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r} is neither left nor right")
    whole = svd.leading(wide(W_OI), min(W_OI.shape))
    U_OK, S_K, Vh_KI = update.triplets
    own_KD, theirs_KD = (Vh_KI, whole.Vh_RI) if side == "right" else (U_OK.T, whole.U_OR.T)
    along_K = (theirs_KD.cpu().double() @ (own_KD.T * S_K)).square().sum(1)
    return along_K / S_K.square().sum().clamp_min(torch.finfo(torch.float64).tiny)


class Intruders(NamedTuple):
    """Singular vectors of W' that are like none of W's (2410.21228, def. 1)."""

    cosines: Tensor
    """(k,): for each of the first k left singular vectors of W', the greatest |cos| with one of W's."""
    floor: float
    """√(2 ln O / O): what the greatest of O random cosines is about; ε must be above it to mean anything."""

    def count(self, epsilon: float = EPSILON) -> int:
        """The number of the k whose |cos| is below ε. ValueError where ε is not above the floor."""
        if epsilon <= self.floor:
            raise ValueError(
                f"ε={epsilon} is not above {self.floor:.2f}, which random vectors of this dimension reach"
            )
        return int((self.cosines < epsilon).sum())


def intruders(update: WeightUpdate, W_OI: Tensor, first: int = INTRUDERS) -> Intruders:
    """The first left singular vectors of W' = W + ΔW against all of W. ValueError for another shape."""
    _check(update, W_OI)
    update.check_finite()
    W64_OI = W_OI.detach().to("cpu", torch.float64)
    theirs_OK = torch.linalg.svd(W64_OI, full_matrices=False).U
    tuned_OK = torch.linalg.svd(W64_OI + update.dense(), full_matrices=False).U[:, :first]
    cosines = (tuned_OK.T @ theirs_OK).abs().max(dim=1).values
    return Intruders(cosines, math.sqrt(2 * math.log(update.shape[0]) / update.shape[0]))


def row_changes(W_OI: Tensor, dW_OI: Tensor) -> RowChanges:
    """ΔM and ΔD of W' = W + ΔW, sums in float64; a row that is zero before or after has no direction."""
    W_OI, dW_OI = wide(W_OI), wide(dW_OI)
    squares_O, dots_O, changes_O = (
        (a * b).sum(1, dtype=torch.float64) for a, b in ((W_OI, W_OI), (W_OI, dW_OI), (dW_OI, dW_OI))
    )
    before_O, after_O = squares_O.sqrt(), (squares_O + 2 * dots_O + changes_O).clamp_min(0).sqrt()
    # 1 - cos = (‖ΔW‖² - (‖W'‖ - ‖W‖)²) / (2 ‖W‖ ‖W'‖): nothing cancels where the change is small
    grown_O, both_O = after_O - before_O, 2 * before_O * after_O
    turned_O = ((changes_O - grown_O.square()) / both_O)[both_O > 0].clamp(0, 2)
    direction = float(turned_O.mean()) if len(turned_O) else 0.0
    return RowChanges(float(grown_O.abs().mean()), direction)


def _check(update: WeightUpdate, W_OI: Tensor) -> None:
    if tuple(W_OI.shape) != update.shape:
        raise ValueError(f"{update.name}: ΔW is {update.shape}, but W is {tuple(W_OI.shape)}")
