"""How large and how spread out each ΔW = W' - W of a trained model is, from its singular values.

Letters: O out, I in, R rank of the factors; ΔW and W are (O, I).
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lora_zoo.adapters.hosts import wide

if TYPE_CHECKING:
    from lora_zoo.adapters.injection import Injection

KEPT = 64
NOISE = 1e-6  # singular values below this part of the first count as noise in the effective rank


class Change(NamedTuple):
    """One ΔW by its singular values, largest first, ||W||_F of what it changed, and how the rows changed."""

    name: str
    shape: tuple[int, int]
    singular_values: Tensor
    base_norm: float
    rows: "Rows"


class Rows(NamedTuple):
    """DoRA's ΔM and ΔD (2402.09353, eq. 3 and 4): means over the rows of W, which are its output features.

    `magnitude` is mean | ‖W'_o‖ - ‖W_o‖ |, `direction` mean (1 - cos(W'_o, W_o)).
    """

    magnitude: float
    direction: float


@torch.no_grad()
def summary(injection: "Injection") -> list[dict[str, Any]]:
    """One row per changed matrix; call it on adapters that are not merged.

    `relative_norm` is ||ΔW||_F / ||W||_F, None where W is zero; `magnitude_change` and `direction_change` are
    those of `Rows`; `singular_values` are the 64 largest.
    """
    return [_row(change) for change in _changes(injection)]


def overview(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many matrices changed, and the median over them of each number in `rows`."""
    medians: dict[str, Any] = {"matrices": len(rows)}
    for key in ("norm", "relative_norm", "stable_rank", "effective_rank"):
        values = [row[key] for row in rows if row[key] is not None and math.isfinite(row[key])]
        medians[key] = statistics.median(values) if values else None
    return medians


def product_values(B_OR: Tensor, A_RI: Tensor) -> Tensor:
    """Singular values of B A, which are those of R_b R_aᵀ with B = Q_b R_b and Aᵀ = Q_a R_a: no (O, I) SVD.

    In float64, on the CPU. Values that rounding alone explains are zero; NaN where a factor is not finite.
    """
    B_OR, A_RI = (t.detach().to("cpu", torch.float64) for t in (B_OR, A_RI))
    R_b, R_a = torch.linalg.qr(B_OR).R, torch.linalg.qr(A_RI.T).R
    rounding = torch.finfo(torch.float64).eps * B_OR.shape[1] * float(B_OR.norm() * A_RI.norm())
    return _values(R_b @ R_a.T, rounding)


def dense_values(dW_OI: Tensor, base_norm: float = 0.0) -> Tensor:
    """Singular values of ΔW; those that rounding a W' of about ||W||_F = `base_norm` explains are zero."""
    O, I = dW_OI.shape
    return _values(dW_OI.detach(), torch.finfo(dW_OI.dtype).eps * base_norm * (O**-0.5 + I**-0.5))


def _values(matrix: Tensor, rounding: float) -> Tensor:
    if not matrix.isfinite().all():
        return torch.full((min(matrix.shape),), torch.nan, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix).double().cpu()
    return torch.where(values > rounding, values, 0.0)


def _changes(injection: "Injection") -> Iterator[Change]:
    for name, adapter in injection.adapters.items():
        W_OI = wide(injection.places[name].host.matrix())
        base_norm, factors = float(W_OI.norm()), adapter.factors()
        dW_OI = adapter.weight(W_OI) - W_OI
        values = dense_values(dW_OI, base_norm) if factors is None else product_values(*factors)
        yield Change(name, (W_OI.shape[0], W_OI.shape[1]), values, base_norm, row_changes(W_OI, dW_OI))
    for name in injection.in_full:
        if injection.originals[name].ndim == 2:
            W_OI = wide(injection.originals[name])
            dW_OI = wide(injection.trained[name]) - W_OI
            shape, rows = (W_OI.shape[0], W_OI.shape[1]), row_changes(W_OI, dW_OI)
            yield Change(name.removesuffix(".weight"), shape, dense_values(dW_OI), float(W_OI.norm()), rows)


def row_changes(W_OI: Tensor, dW_OI: Tensor) -> Rows:
    """ΔM and ΔD of W' = W + ΔW, sums in float64; a row that is zero before or after has no direction."""
    squares_O, dots_O, changes_O = (
        (a * b).sum(1, dtype=torch.float64) for a, b in ((W_OI, W_OI), (W_OI, dW_OI), (dW_OI, dW_OI))
    )
    before_O, after_O = squares_O.sqrt(), (squares_O + 2 * dots_O + changes_O).clamp_min(0).sqrt()
    # 1 - cos = (‖ΔW‖² - (‖W'‖ - ‖W‖)²) / (2 ‖W‖ ‖W'‖): nothing cancels where the change is small
    grown_O, both_O = after_O - before_O, 2 * before_O * after_O
    turned_O = ((changes_O - grown_O.square()) / both_O)[both_O > 0].clamp(0, 2)
    direction = float(turned_O.mean()) if len(turned_O) else 0.0
    return Rows(float(grown_O.abs().mean()), direction)


def _row(change: Change) -> dict[str, Any]:
    sigma = change.singular_values
    norm, top = float(sigma.norm()), float(sigma.max())
    return {
        "name": change.name,
        "shape": list(change.shape),
        "norm": norm,
        "relative_norm": norm / change.base_norm if change.base_norm else None,
        "stable_rank": float((sigma / top).square().sum()) if top else 0.0,
        "effective_rank": _effective_rank(sigma) if top else 0.0,
        "magnitude_change": change.rows.magnitude,
        "direction_change": change.rows.direction,
        "singular_values": sigma[:KEPT].tolist(),
    }


def _effective_rank(sigma: Tensor) -> float:
    """exp of the entropy of σ / Σσ: Roy & Vetterli (2007), of σ and not of σ²."""
    signal = sigma[~(sigma < NOISE * sigma.max())]
    return math.exp(float(torch.special.entr(signal / signal.sum()).sum()))


__all__ = ["dense_values", "overview", "product_values", "summary"]
