"""Base class of variants with a trained core between random factors.

Shapes: O out, I in, R rank.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.variants.low_rank import Product, Scaled


class ZeroCore(Product, Scaled, ABC):
    """W' = W + s B E A: A and B begin random and the core E at zero, so that E alone moves in the first step.

    `init` has no meaning here: with a zero factor beside the zero core nothing would ever get a gradient.
    """

    def __init__(
        self, context: LayerContext, *, rank: int = 8, alpha: Alpha = "auto", lora_dropout: float = 0.0
    ) -> None:
        super().__init__(context)
        self.scale = self.scale_of(alpha, rank)
        A_RI, B_RO = self.drawn(context, rank)
        self.A_RI, self.B_OR = nn.Parameter(A_RI), nn.Parameter(B_RO.T.contiguous())
        self.dropout = context.dropout(lora_dropout)

    @staticmethod
    @abstractmethod
    def drawn(context: LayerContext, rank: int) -> tuple[Tensor, Tensor]:
        """A (R, I), and B as (R, O), whose first rows are those of a smaller rank."""
