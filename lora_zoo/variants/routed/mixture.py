"""Mixtures of experts beside a layer: low-rank products that a router weighs for each token.

Shapes: O out, I in, R rank, E experts; x is (..., I).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.host import LayerHost
from lora_zoo.core.init import Init
from lora_zoo.core.routing import balance_of, top_k
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.variants.low_rank import Scaled
from lora_zoo.variants.routers import RouterRate


class Balance(RouterRate):
    """Adds what the routers emitted, the weighed losses of their balance, to the loss."""

    packable = True  # what an adapter emits reaches its own job alone

    @classmethod
    def gathers(cls, *, balance: float = 0.0, **hyper: Any) -> str:
        return "balances its experts over all tokens (variant.balance=0 does not)" if balance else ""

    def regularizer(self) -> Tensor | float:
        """ValueError where nothing was emitted: reentrant checkpointing keeps no graph of a pass."""
        if not self.counter.emitted and any(own.training and own.emits for own in self.adapters.values()):
            raise ValueError(
                "the loss of balance is lost in reentrant recomputation; use "
                "trainer.gradient_checkpointing=false, use_reentrant=false, or variant.balance=0"
            )
        return self.emitted()


class Routed(Adapter, ABC):
    """Weighs its experts by a softmax in float32 or wider, of all of them or of the `top_k` likeliest.

    What is weighed depends on the input, so that nothing is merged.
    """

    pointwise = False
    hooks: ClassVar[type[AdapterHooks]] = Balance
    routers: ClassVar[tuple[str, ...]] = ("G_EI",)
    """The names of its routers' parameters."""

    def __init__(self, context: LayerContext, *, experts: int, top_k: int = 0, balance: float = 0.0) -> None:
        """`top_k=0` weighs all of the experts; `balance` is the weight of the loss that evens their load."""
        super().__init__(context)
        if experts < 1:
            raise ValueError(f"{self.name}: experts must be at least 1; got {experts}")
        if not 0 <= top_k <= experts:
            raise ValueError(
                f"{self.name}: top_k must lie between 1 and the {experts} experts, or be 0 for all of them; "
                f"got {top_k}"
            )
        if balance < 0:
            raise ValueError(f"{self.name}: balance must not be negative; got {balance}")
        self.top_k, self.balance = top_k or experts, balance
        self.emits = balance > 0

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return "its router weighs tokens, of which there are none" if kind == "convolution" else None

    def weights(self, logits_E: Tensor) -> Tensor:
        """The experts' weights (..., E), of sum 1, from the router's logits; noted, and balanced."""
        probabilities_E = logits_E.softmax(-1, dtype=at_least_float32(logits_E.dtype))
        sparse = self.top_k < logits_E.shape[-1]
        weights_E = top_k(probabilities_E, self.top_k) if sparse else probabilities_E
        self.note(weights_E)
        if self.balance:
            self.emit(self.balance * self.imbalance(probabilities_E, weights_E))
        return weights_E

    def imbalance(self, probabilities_E: Tensor, weights_E: Tensor) -> Tensor:
        """The loss that is lowest where all experts have the same load; padding has no part in it."""
        return balance_of(*map(self.counter.tokens, (probabilities_E, weights_E)))


class Mixture(Scaled, Routed, ABC):
    """W' x = W x + s Σᵢ ωᵢ Bᵢ Aᵢ x, ω of the router G x; one dropout mask a pass serves all experts.

    All experts are computed, and those that are not chosen weigh 0.
    """

    scale: float

    @abstractmethod
    def router(self) -> Tensor:
        """G (E, I)."""

    @abstractmethod
    def pairs(self) -> tuple[Tensor, Tensor]:
        """B (E, O, R) and A (E, R, I), or A (1, R, I) where the experts share it."""

    def mixture(self, logits_E: Tensor, h_ER: Tensor) -> Tensor:
        """The branch's output (..., O) from the router's logits (..., E) and each A x (..., E or 1, R)."""
        weights_E, (B_EOR, _) = self.weights(logits_E).to(h_ER.dtype), self.pairs()
        return F.linear(
            (weights_E[..., None] * h_ER).flatten(-2), self.scale * B_EOR.transpose(0, 1).flatten(1)
        )

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y, dropped, (_, A_ERI) = host.base(x), host.dropped(x, self.dropout), self.pairs()
        h_ER = host.times(dropped, A_ERI.flatten(0, 1)).unflatten(-1, A_ERI.shape[:2])
        return y + self.mixture(host.times(x, self.router()), h_ER).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Each token meets one matrix: s Bᵢ Aᵢ of its likeliest experts, weighed by softmax(G x) of these."""
        G_EI, (B_EOR, A_ERI) = self.router(), self.pairs()
        tokens_TI = torch.eye(A_ERI.shape[-1]).to(A_ERI)
        found_TO = self.mixture(tokens_TI @ G_EI.T, torch.einsum("eri,ti->ter", A_ERI, tokens_TI))
        for x_I, y_O in zip(tokens_TI, found_TO, strict=True):
            raised_E = (G_EI @ x_I).exp()
            chosen = raised_E.topk(self.top_k).indices
            A = A_ERI.expand(len(G_EI), -1, -1)
            parts = [raised_E[i] / raised_E[chosen].sum() * (B_EOR[i] @ (A[i] @ x_I)) for i in chosen]
            torch.testing.assert_close(y_O, self.scale * sum(parts), rtol=1e-4, atol=1e-5)


class ExpertPairs(Mixture, ABC):
    """Experts that are LoRAs of their own, and a router like a linear layer without a bias, each trained."""

    count = "experts * (R * (O + I) + I)"
    equation = "W' x = W x + (α/r) Σᵢ ωᵢ Bᵢ Aᵢ x, ω = softmax(G x)"

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        experts: int = 8,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
        **routed: Any,
    ) -> None:
        super().__init__(context, experts=experts, **routed)
        self.scale = self.scale_of(alpha, rank)
        self.A_ERI = nn.Parameter(torch.stack(list(expert_starts(context, experts, rank, self.scale, init))))
        self.B_EOR = nn.Parameter(context.full((experts, context.shape[0], rank)))
        self.G_EI = nn.Parameter(linear_router(context, experts))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        """Starts with B at zero, and not from data, by which all experts would start alike."""
        return init.zero == "B" and not init.needs

    def router(self) -> Tensor:
        return self.G_EI

    def pairs(self) -> tuple[Tensor, Tensor]:
        return self.B_EOR, self.A_ERI


def linear_router(context: LayerContext, experts: int) -> Tensor:
    """G (E, I) as torch starts a linear layer: U(±1/√I)."""
    I = context.shape[1]
    return context.uniform("G", (experts, I), kaiming_bound(I, 1 / math.sqrt(3)))


def expert_starts(
    context: LayerContext, experts: int, rank: int, scale: float, init: str
) -> Iterator[Tensor]:
    """A (R, I) of one expert after the other, each a draw of its own; the first is LoRA's."""
    for number in range(experts):
        part = f"expert {number}" if number else ""
        first, _ = context.first_factors(init, rank=rank, scale=scale, part=part)
        yield first.A_RI


def each_by_itself(x: Tensor, host: LayerHost, B_NOR: Tensor, A_NRI: Tensor) -> Tensor:
    """The bias-free outputs (N, ..., O) of N examples, each by a product B A of its own."""
    return torch.stack([host.low_rank(*one) for one in zip(x, B_NOR, A_NRI, strict=True)])
