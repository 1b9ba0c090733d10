"""FedPara: Low-Rank Hadamard Product (Hyeon-Woo et al., ICLR 2022); LoHa in LyCORIS and PEFT."""

from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.variants.hadamard import Hadamard


@register("loha")
class LoHa(Hadamard):
    """§2.1, proposition 1: the product of two low-rank matrices, entry by entry, has a rank of up to r².

    The second pair begins random, with PEFT's widths, and `init` begins the first one.
    """

    paper = "arXiv:2108.06098"
    equation = "W' = W + (α/r) (B₁ A₁) ⊙ (B₂ A₂)"
    count = "2 * R * (O + I)"
    peft = PlainFormat(
        "LoHa",
        {"B_OR": "hada_w1_a", "A_RI": "hada_w1_b", "B2_OR": "hada_w2_a", "A2_RI": "hada_w2_b"},
        {"rank": ("r", 8), "alpha": ("alpha", 8)},
    )

    def second(self, context: LayerContext) -> tuple[Tensor, Tensor]:
        (O, I), third = context.shape, 3**-0.5
        B2_RO = context.uniform("B2", (self.rank, O), kaiming_bound(self.rank, third))
        return B2_RO.T, context.uniform("A2", (self.rank, I), kaiming_bound(I, third))
