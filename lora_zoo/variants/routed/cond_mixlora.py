"""MixLoRA of Shen et al.: Multimodal Instruction Tuning with Conditional Mixture of LoRA (ACL 2024).

Another MixLoRA than that of arXiv:2404.15159. Shapes: O out, I in, R rank, N examples, T tokens, E factors.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Scaled
from lora_zoo.variants.routed.mixture import Routed, each_by_itself


@register("cond_mixlora")
class ConditionalMixLoRA(Scaled, Routed):
    """§3: of E rows a and E columns b, R of each make an example's A and B, as its mean input chooses.

    The router of A reads the mean of the tokens x̄. That of B adds to the softmax of its own logits what the
    chosen rows suggest, the softmax of Σ softmax(Hᵢ aᵢ). Each router's R greatest are taken, in order.
    Padding is no part of a mean; a layer that is given one token at a time (generation with a cache) chooses
    by that token.

    The official code sums Hᵢ and aᵢ apart and multiplies the sums (brd,rfe->bre); this is their product.
    There a choice has no gradient, so that routers stay as they start. Here the chosen
    factors count 1 as there, and the routers learn by the straight-through gradient of their softmax.
    """

    title = "MixLoRA (conditional)"
    paper = "arXiv:2402.15896"
    by_row = "chooses experts by the mean input of a row"
    equation = (
        "W' x = W x + (α/r) Σᵢ b_j(i) a_k(i)ᵀ x, k = top_r(G x̄), j = top_r(σ(J x̄) + σ(Σᵢ σ(Hᵢ a_k(i))))"
    )
    count = "experts * (O + I) + experts * I * (2 + R)"
    targets = ("q", "k", "v", "o", "gate", "up", "down")
    routers = ("G_EI", "J_EI", "H_REI")
    paper_alpha = 32.0  # the official scripts', twice the factors

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 4,
        alpha: Alpha = "auto",
        experts: int = 16,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context, experts=experts)
        self.rank, self.scale, (O, I) = rank, self.scale_of(alpha, rank), context.shape
        bound = I**-0.5
        self.A_EI = nn.Parameter(context.uniform("A", (experts, I), bound))
        self.B_EO = nn.Parameter(context.full((experts, O)))
        self.G_EI = nn.Parameter(context.uniform("G", (experts, I), bound))
        self.J_EI = nn.Parameter(context.uniform("J", (experts, I), bound))
        self.H_REI = nn.Parameter(context.uniform("H", (rank, experts, I), bound / rank**0.5))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return int(hyper["experts"])

    def mean(self, logits_E: Tensor) -> Tensor:
        """The means (N, E) over each example's tokens."""
        if logits_E.ndim < 3:
            return logits_E
        kept = self.counter.kept(logits_E)
        if kept is None:
            return logits_E.flatten(1, -2).mean(1)
        return (logits_E * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp_min(1)

    def rows(self, G_logits_NE: Tensor) -> Tensor:
        """A (N, R, I): the rows that A's router chooses."""
        return self._chosen(G_logits_NE.softmax(-1), self.A_EI)

    def columns(self, J_logits_NE: Tensor, A_NRI: Tensor) -> Tensor:
        """Bᵀ (N, R, O): the columns that B's router chooses, with these rows."""
        wide_NRI, wide_REI = A_NRI.to(J_logits_NE.dtype), self.H_REI.to(J_logits_NE.dtype)
        suggested_NE = torch.einsum("nri,rei->nre", wide_NRI, wide_REI).softmax(-1).sum(1)
        return self._chosen(J_logits_NE.softmax(-1) + suggested_NE.softmax(-1), self.B_EO)

    def _chosen(self, score_NE: Tensor, factors_E: Tensor) -> Tensor:
        """The factors of the R greatest scores, greatest first, times 1 with the gradient of the scores."""
        values_NR, places_NR = score_NE.topk(self.rank, dim=-1)
        self.note(torch.zeros_like(score_NE).scatter(-1, places_NR, 1 / self.rank))
        one_NR = 1 + (values_NR - values_NR.detach())
        return one_NR.to(factors_E.dtype)[..., None] * factors_E[places_NR]

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y, dropped = host.base(x), host.dropped(x, self.dropout)
        wide = at_least_float32(self.G_EI.dtype)  # what is chosen must not hang on a rounding
        wide_x = x.to(wide) if x.is_floating_point() else x
        with uncast(x.device):
            A_NRI = self.rows(self.mean(host.times(wide_x, self.G_EI.to(wide))))
            B_NRO = self.columns(self.mean(host.times(wide_x, self.J_EI.to(wide))), A_NRI)
        return y + each_by_itself(dropped, host, self.scale * B_NRO.mT, A_NRI).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Every example's A is R rows of the pool, each once, and its B as many columns."""
        inputs_NI = torch.eye(self.A_EI.shape[1]).to(self.A_EI)
        A_NRI = self.rows(inputs_NI @ self.G_EI.T)
        B_NRO = self.columns(inputs_NI @ self.J_EI.T, A_NRI)
        for pool, chosen in ((self.A_EI, A_NRI), (self.B_EO, B_NRO)):
            same_NRE = (chosen[:, :, None] == pool).all(-1)
            assert same_NRE.any(-1).all(), "a factor is of no pool"
            twice = (same_NRE.sum(1) > 1).any() and pool.any(-1).all()
            assert not twice, "a factor is taken twice"
