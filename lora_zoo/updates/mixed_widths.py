"""Mixed widths: one quantiser for each matrix, so that the error is least within a budget of bits."""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from lora_zoo.core.dtypes import wide
from lora_zoo.quantizers.codes import Quantizer
from lora_zoo.updates.quantization_errors import PLAIN, remainder


def allotted_widths(
    weights: Mapping[str, Tensor],
    quantizers: Mapping[str, Quantizer],
    *,
    bits: float,
    start: str = PLAIN,
    rank: int = 8,
) -> dict[str, Quantizer]:
    """Matrix -> its quantiser: LQ-LoRA's integer program (2311.12023, §3.3), solved by scipy.

    Minimise the sum of ‖W - Q - B A‖F² over the matrices (O, I) where the mean over all weights of the bits
    that are stored is at most `bits`; `start` and `rank` are of the factors, none by default. `quantize`
    takes the result. ValueError for a budget that the narrowest quantisers exceed.
    """
    names = list(weights)
    errors_MQ, bits_MQ = np.zeros((2, len(names), len(quantizers)))
    for m, W_OI in enumerate(weights.values()):
        O, I = W_OI.shape
        for q, quantizer in enumerate(quantizers.values()):
            left_OI = remainder(start, wide(W_OI), quantizer, min(rank, O, I))
            errors_MQ[m, q] = float(left_OI.square().sum())
            bits_MQ[m, q] = quantizer.bits(O, I) * O * I
    budget = bits * sum(W_OI.numel() for W_OI in weights.values())
    chosen = list(quantizers.values())
    return {name: chosen[q] for name, q in zip(names, least(errors_MQ, bits_MQ, budget), strict=True)}


def least(errors_MQ: np.ndarray, bits_MQ: np.ndarray, budget: float) -> list[int]:
    """The choice for each row that makes the sum of errors least, of bits within `budget`."""
    M, Q = errors_MQ.shape
    if (narrowest := float(bits_MQ.min(1).sum())) > budget:
        raise ValueError(
            f"the budget is {budget:.6g} bits, and the narrowest quantisers take {narrowest:.6g}"
        )
    one_each = LinearConstraint(np.kron(np.eye(M), np.ones((1, Q))), 1, 1)
    within = LinearConstraint(bits_MQ.reshape(1, -1), 0, budget)
    found = milp(
        errors_MQ.ravel() / max(errors_MQ.max(), 1e-300),
        constraints=[one_each, within],
        integrality=np.ones(M * Q),
        bounds=Bounds(0, 1),
    )
    assert found.x is not None, found.message
    return [int(q) for q in found.x.reshape(M, Q).argmax(1)]


__all__ = ["allotted_widths", "least"]
