"""The error that each start leaves on quantised weights, as a table: norms of W - Q - s B A, and bits.

Shapes: O out, I in, R rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_zoo.core.dtypes import wide
from lora_zoo.core.init import Recoding, find_init, initial_factors
from lora_zoo.core.statistics import ORIGINAL, Statistics, of_data
from lora_zoo.quantizers.codes import SCALE_BITS, Quantizer

PLAIN = "plain"
"""Q alone, as QLoRA begins: B A = 0."""
STARTS = (PLAIN, "loftq", "loftq_iter_5", "qpissa", "qpissa_iter_5")


class ErrorRow(NamedTuple):
    """One start over all matrices: norms are root sums of squares and sums, relative to those of W.

    `reduction` is the part of the plain error's nuclear norm that is gone (PiSSA, 2404.02948, eq. 8), and
    `reduction_fro` that of its Frobenius norm. `bits` are those of a weight's code and scales, `bits_all`
    those with the factors in float32.
    """

    start: str
    frobenius: float
    nuclear: float
    reduction_fro: float
    reduction: float
    bits: float
    bits_all: float


class _Values:
    """Keeps the values of codes: a coder without a layer."""

    def __init__(self, quantizer: Quantizer, W_OI: Tensor) -> None:
        self.rounding = quantizer.rounded
        self.values = quantizer.rounded(W_OI)

    def encode(self, W_OI: Tensor) -> Tensor:
        return self.rounding(W_OI)

    def put(self, values: Tensor) -> None:
        self.values = values


@torch.no_grad()
def error_table(
    weights: Mapping[str, Tensor],
    quantizer: Quantizer,
    *,
    rank: int,
    starts: Sequence[str] = STARTS,
    statistics: Mapping[str, Statistics] | None = None,
) -> list[ErrorRow]:
    """The errors of `starts` on matrices (O, I) by name, the plain one first, whether asked for or not.

    `statistics` are those of data by matrix, where a start looks at them. ValueError for a start that is
    none of a quantised base, or lacks its statistics.
    """
    for name in starts:
        if name != PLAIN and ORIGINAL not in find_init(name).needs:
            raise ValueError(f"init={name} does not look at the error of a quantised base")
    known, rows, plain = statistics or {}, list[ErrorRow](), (0.0, 0.0)
    norms = [_norms(wide(W)) for W in weights.values()]
    whole = _together(norms)
    total = sum(W.numel() for W in weights.values())
    bits = sum(quantizer.bits(*W.shape) * W.numel() for W in weights.values()) / total
    factors = sum(SCALE_BITS * min(rank, *W.shape) * sum(W.shape) for W in weights.values()) / total
    for start in dict.fromkeys((PLAIN, *starts)):
        left = [
            _norms(remainder(start, wide(W), quantizer, min(rank, *W.shape), known.get(name, {})))
            for name, W in weights.items()
        ]
        frobenius, nuclear = _together(left)
        plain = (frobenius, nuclear) if start == PLAIN else plain
        less_fro, less = 1 - frobenius / max(plain[0], 1e-30), 1 - nuclear / max(plain[1], 1e-30)
        of_all = bits + (0 if start == PLAIN else factors)
        row = ErrorRow(start, frobenius / whole[0], nuclear / whole[1], less_fro, less, bits, of_all)
        rows.append(row)
    return rows


def remainder(
    start: str, W_OI: Tensor, quantizer: Quantizer, rank: int, statistics: Statistics | None = None
) -> Tensor:
    """W - Q - s B A (O, I) of one start, at s = 1."""
    values = _Values(quantizer, W_OI)
    if start == PLAIN:
        return W_OI - values.values
    (A_RI, B_OR), _ = initial_factors(
        start,
        values.values,
        rank=rank,
        scale=1.0,
        seed=0,
        matrix=start,
        statistics={**(statistics or {}), ORIGINAL: W_OI},
        recoding=Recoding(values, W_OI, 1.0),
    )
    return W_OI - values.values - B_OR @ A_RI


def needed(starts: Sequence[str]) -> tuple[str, ...]:
    """The statistics of data that some of the starts look at."""
    own = (need for name in starts if name != PLAIN for need in of_data(find_init(name).needs))
    return tuple(dict.fromkeys(own))


def lines(rows: Sequence[ErrorRow]) -> Iterator[str]:
    """The table as text, a line for each start."""
    head = ("start", "‖·‖F / ‖W‖F", "‖·‖* / ‖W‖*", "less ‖·‖F", "less ‖·‖*", "bits", "with factors")
    texts: list[Sequence[Any]] = [head]
    for row in rows:
        norms, less = (f"{row.frobenius:.4f}", f"{row.nuclear:.4f}"), (row.reduction_fro, row.reduction)
        texts.append(
            (row.start, *norms, *map("{:.1%}".format, less), f"{row.bits:.3f}", f"{row.bits_all:.2f}")
        )
    widths = [max(len(text[column]) for text in texts) for column in range(len(head))]
    for text in texts:
        yield "  ".join(part.ljust(width) for part, width in zip(text, widths, strict=True)).rstrip()


def _norms(W_OI: Tensor) -> tuple[float, float]:
    """Frobenius and nuclear norm."""
    singular = torch.linalg.svdvals(W_OI)
    return float(singular.square().sum().sqrt()), float(singular.sum())


def _together(norms: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(f * f for f, _ in norms) ** 0.5, sum(n for _, n in norms)


__all__ = ["PLAIN", "STARTS", "ErrorRow", "error_table", "lines", "needed", "remainder"]
