"""The arithmetic floor of a step: the multiplications and bytes that no order of operations avoids.

Of a frozen layer: two products with W, and x, y and their gradients once, W twice. Of its adapter, with
thin factors B and A in whatever way they are made:

* each factor that learns takes a product of thin matrices from the left and one from the right, over all
  tokens, or both take the gradient of W' once;
* the branch itself, forward and backward, takes two more, or B A is formed once;
* parameters are read twice and their gradients written once, and x (of a frozen A: A x) is kept and read.

Of an adapter without such factors, the gradient of each number is a sum over tokens: a looser bound. A
frozen start that a variant keeps within its factors counts with them. The rest of a step (attention, norms,
the loss) is the same for all and left out, so that a ratio that is measured lies nearer to 1.
Shapes: N tokens, O out, I in, R rank.
"""

from typing import NamedTuple

from torch import Tensor

from lora_zoo.bench.report import Values
from lora_zoo.core.adapter import Adapter
from lora_zoo.injection.inject import Injection
from lora_zoo.kernels.shared import FactorPair


class Operations(NamedTuple):
    """Multiplications, and numbers that are read or written."""

    multiplications: float
    moved: float

    def __add__(self, other: "Operations") -> "Operations":  # type: ignore[override]
        return Operations(self.multiplications + other.multiplications, self.moved + other.moved)


def floor(injection: Injection, tokens: int) -> Values:
    """The least work of a step as multiples of the frozen adapted layers' own.

    Nothing for what adapts no matrix, and where adapters choose among tokens.
    """
    if not injection.adapters or not injection.variant.pointwise:
        return {}
    base = more = Operations(0, 0)
    for name, adapter in injection.adapters.items():
        shape = injection.matrices[name].host.shape
        base, more = base + of_layer(tokens, shape), more + of_adapter(adapter, tokens, shape)
    return {
        "floor_multiplications": 1 + more.multiplications / base.multiplications,
        "floor_bytes": 1 + more.moved / base.moved,
    }


def of_layer(N: int, shape: tuple[int, int]) -> Operations:
    O, I = shape
    return Operations(2 * N * O * I, 2 * O * I + 2 * N * (O + I))


def of_adapter(adapter: Adapter, N: int, shape: tuple[int, int]) -> Operations:
    O, I = shape
    P = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    operands = adapter.fused.operands(adapter) if adapter.fused else ()
    pair = next((operand for operand in operands if isinstance(operand, FactorPair)), None)
    if pair is None:
        return Operations(min(N * P, N * O * I), 3 * P + N * I)
    b, a, R = distinct(pair.B_OR), distinct(pair.A_RI.T), len(pair.A_RI)
    learn = max(pair.B_OR.requires_grad + pair.A_RI.requires_grad, 1)
    gradients, branch = min(learn * N * (b + a), N * O * I), min(N * (b + a), b * a / R)
    return Operations(
        gradients + branch, 3 * P + (N * I if pair.A_RI.requires_grad else min(N * I, 2 * N * R))
    )


def distinct(factor: Tensor) -> int:
    """The entries that are multiplied: zeros are not, and neighbouring rows that are equal are one."""
    return int(factor.detach().unique_consecutive(dim=0).count_nonzero())
