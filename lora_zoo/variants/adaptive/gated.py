"""Base class of variants with a gate on each component of their low-rank factors.

Shapes: O out, I in, R rank.
"""

from abc import ABC
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_zoo.core.init import Init
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.components import alive
from lora_zoo.variants.low_rank import Product


class Gated(Product, ABC):
    """W' = W + s B diag(g) A; a gate at zero is a rank less.

    A subclass has this base before the one that makes A, B and s (`Additive`, `ZeroCore`), and makes g.
    """

    A_RI: nn.Parameter
    B_OR: nn.Parameter
    g_R: Tensor
    scale: float

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return bool(init.zero) or init.moves  # gates stand in no product of the start that is subtracted

    def gates(self) -> Tensor:
        """The factor of each component (R): g itself, unless the variant makes it of g."""
        return self.g_R

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        return FactorPair(self.B_OR * self.gates(), self.A_RI, self.scale), None

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.pairs()[0].scaled()

    def components(self) -> int:
        return len(self.A_RI)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is that of LoRA with the components whose gates are open, and no more."""
        gate_R = self.gates()
        open_R = gate_R != 0
        B_OK, A_KI = self.B_OR[:, open_R] * gate_R[open_R], self.A_RI[open_R]
        torch.testing.assert_close(self.weight(W_OI), W_OI + self.scale * B_OK @ A_KI)


def open_components(adapters: Mapping[str, Gated]) -> dict[str, Tensor]:
    """The components whose gates are not zero, matrix -> indices, as `AdapterHooks.kept` gives them."""
    return {name: alive(adapter.gates() != 0) for name, adapter in adapters.items()}
