"""MoV, mixture of vectors: Pushing Mixture of Experts to the Limit (Zadouri et al., ICLR 2024).

Shapes: O out, I in, E experts, S what is scaled (the layer's O outputs, or its I inputs).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.errors import unknown
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.injection.roles import ROLES
from lora_zoo.variants.routed.mixture import Routed
from lora_zoo.variants.routers import RouterRate
from lora_zoo.variants.undecayed import Undecayed


class Gains(Undecayed, RouterRate):
    """Nothing decays, and routers have a rate of their own."""


@register("mov")
class MoV(Routed):
    """§2.3: (IA)³ whose gains are the mean of all experts' vectors, weighed for each token by its router.

    The router reads what the gains scale, as in the official code: keys and values (bias included), and for
    `feedforward` roles the hidden layer, the input of `down`. That code weighs each head of an attention by
    itself, with one router for all of them; here a vector is weighed as a whole.
    """

    paper = "arXiv:2309.05444"
    equation = "W' x = l ⊙ (W x + b), l = Σᵢ ωᵢ lᵢ, ω = softmax(G (W x + b)); feedforward: W (l ⊙ x), of G x"
    count = "2 * experts * (I if role in feedforward else O)"
    targets = ("k", "v", "down")
    hooks = Gains
    routers = ("G_ES",)

    def __init__(
        self, context: LayerContext, *, experts: int = 10, feedforward: Sequence[str] = ("down",)
    ) -> None:
        super().__init__(context, experts=experts)
        for role in feedforward:
            if role not in ROLES:
                raise ValueError("mov: feedforward: " + unknown("role", role, ROLES))
        self.of_inputs = context.role in feedforward
        S = context.shape[self.of_inputs]
        self.l_ES = nn.Parameter(context.full((experts, S), 1.0))
        self.G_ES = nn.Parameter(context.normal("G", (experts, S), 0.02))

    def scaled(self, h_S: Tensor) -> Tensor:
        """l ⊙ h of vectors (..., S), with the gains that the router finds for each."""
        weights_E = self.weights(F.linear(h_S.to(self.G_ES.dtype), self.G_ES))
        return h_S * (weights_E.to(self.l_ES.dtype) @ self.l_ES).to(h_S.dtype)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        if self.of_inputs:
            return host.plus_bias(host.product(self.scaled(x)))
        return self.scaled(host.base(x))

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Every gain lies between the experts' least and greatest, whatever is scaled."""
        states_NS = torch.eye(self.l_ES.shape[1]).to(self.l_ES)
        gains_S = self.scaled(states_NS).diagonal()
        assert (gains_S >= self.l_ES.amin(0) - 1e-5).all() and (gains_S <= self.l_ES.amax(0) + 1e-5).all()
