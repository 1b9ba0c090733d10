"""(IA)³: Infused Adapter by Inhibiting and Amplifying Inner Activations (Liu et al., NeurIPS 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.errors import unknown
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.ia3 import IA3Format
from lora_zoo.injection.roles import ROLES
from lora_zoo.variants.undecayed import Undecayed


@register("ia3")
class IA3(Adapter):
    """§3.3: a gain for each output (keys, values), bias included; for each input of `feedforward` roles.

    The paper adapts `target_modules=[k,v,down]`. A gain is neither a rank nor a scale: there is no alpha.
    """

    title = "(IA)³"
    paper = "arXiv:2205.05638"
    equation = "W' = diag(l) W, b' = l ⊙ b; feedforward: W' = W diag(l)"
    count = "I if role in feedforward else O"
    peft = IA3Format()
    hooks = Undecayed

    def __init__(self, context: LayerContext, *, feedforward: Sequence[str] = ("down",)) -> None:
        super().__init__(context)
        for role in feedforward:
            if role not in ROLES:
                raise ValueError("ia3: feedforward: " + unknown("role", role, ROLES))
        self.of_inputs = context.role in feedforward
        self.l = nn.Parameter(context.full((context.shape[self.of_inputs],), 1.0))

    def weight(self, W_OI: Tensor) -> Tensor:
        return W_OI * (self.l if self.of_inputs else self.l[:, None])

    def bias(self, b_O: Tensor) -> Tensor:
        return b_O if self.of_inputs else self.l * b_O

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        if not host.dense:
            return super().forward(x, host)
        if self.of_inputs:
            return host.plus_bias(host.product(self.l * x))
        y = host.base(x)
        return (self.l * y).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Rows (or columns) keep their directions: each is parallel to the frozen one."""
        axis, effective_OI = int(not self.of_inputs), self.weight(W_OI)
        W_OI = W_OI.to(effective_OI.dtype)
        lengths = effective_OI.norm(dim=axis) * W_OI.norm(dim=axis)
        torch.testing.assert_close((effective_OI * W_OI).sum(axis).abs(), lengths)
