"""MixLoRA: Enhancing LLM Fine-Tuning with LoRA-based Mixture of Experts (Li et al., 2024).

Another MixLoRA than that of arXiv:2402.15896. Shapes: O out, I in, R rank, E experts, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.host import LayerHost
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.injection.feed_forward import FEED_FORWARD, feed_forward_blocks
from lora_zoo.variants.low_rank import Scaled
from lora_zoo.variants.routed.mixture import Balance, Routed, expert_starts

NO_MODULE = "its feed-forward block is no module of its own, so that no expert can be one"
WITHOUT_ROUTER = "the matrix of its block with the role up holds the router; adapt it too"


class Block:
    """A feed-forward block's adapters, which are one expert after the other, each for its own tokens."""

    def __init__(self, adapters: Sequence["MixLoRA"], router: "MixLoRA") -> None:
        self.adapters, self.router = adapters, router
        self.x = self.weights_TE = torch.empty(0)

    def begin(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Route the tokens of a call, a hook before it: its own pass is then the first expert's."""
        (self.x,) = given
        self.weights_TE = self.router.routed(self.x)
        return (self.given_to(0)[1],)

    def end(self, module: nn.Module, given: Any, first: Tensor | None) -> Tensor | None:
        """Add what the other experts make of their tokens, a hook behind the call."""
        x, weights_TE, y = self.x, self.weights_TE, first
        if first is not None:
            y = first.new_zeros(len(weights_TE), first.shape[-1])
            for expert in range(weights_TE.shape[1]):
                tokens, own_x = self.given_to(expert)
                if not expert or len(tokens):
                    own = first if not expert else module.forward(own_x)
                    y = y.index_add(0, tokens, own * weights_TE[tokens, expert, None].to(own.dtype))
            y = y.view(*x.shape[:-1], -1)
        for adapter in self.adapters:
            adapter.expert = None
        self.x = self.weights_TE = torch.empty(0)
        return y

    def given_to(self, expert: int) -> tuple[Tensor, Tensor]:
        """The numbers of the tokens that have chosen an expert, and these; the adapters become it."""
        for adapter in self.adapters:
            adapter.expert = expert
        tokens = self.weights_TE[:, expert].nonzero()[:, 0]
        return tokens, self.x.flatten(0, -2)[tokens]


class Blocks(Balance):
    """Runs each feed-forward block that is adapted once an expert; the loss of balance is their mean's."""

    def attach(self, model: nn.Module, matrices: Mapping[str, Any], **seen: Any) -> None:
        super().attach(model, matrices, **seen)
        known, parts = feed_forward_blocks(model), dict[str, list[MixLoRA]]()
        for name, adapter in self.adapters.items():
            if adapter.is_expert:
                parts.setdefault(known[name], []).append(adapter)
        self.blocks = {
            name: Block(adapters, next(adapter for adapter in adapters if adapter.G_EI is not None))
            for name, adapters in parts.items()
        }
        self._hooks: list[RemovableHandle] = []

    def switch(self, on: bool) -> None:
        for name, block in self.blocks.items() if on else ():
            module = self.model.get_submodule(name)
            self._hooks.append(module.register_forward_pre_hook(block.begin))
            self._hooks.append(module.register_forward_hook(block.end, always_call=True))
        while not on and self._hooks:
            self._hooks.pop().remove()

    def regularizer(self) -> Tensor | float:
        return super().regularizer() / max(len(self.blocks), 1)


@register("mixlora")
class MixLoRA(Scaled, Routed):
    """§3: experts of a feed-forward block are the frozen block with LoRAs of their own on gate, up and down.

    A router of the block, held by `up`, gives each token the `top_k` likeliest. Other matrices have a plain
    LoRA. Each block has Switch's loss, times `top_k` as in Mixtral; the official code pools the routers of
    all layers, here it is the mean of the blocks'. Padding has no part in it.
    """

    title = "MixLoRA (TUDB)"
    paper = "arXiv:2404.15159"
    equation = "W' = W + (α/r) Bᵢ Aᵢ in Σᵢ ωᵢ FFNᵢ(x), ω = the top_k of softmax(G x) over their sum"
    count = "(experts if role in ('gate', 'up', 'down') else 1) * R * (O + I) + (role == 'up') * experts * I"
    targets = ("q", "k", "v", "o", "gate", "up", "down")
    hooks = Blocks
    paper_alpha = "2r"

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 16,
        alpha: Alpha = "auto",
        experts: int = 8,
        top_k: int = 2,
        balance: float = 0.001,
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context, experts=experts, top_k=top_k, balance=balance)
        self.is_expert, self.emits = context.role in FEED_FORWARD, balance > 0 and context.role == "up"
        self.scale, E = self.scale_of(alpha, rank), experts if self.is_expert else 1
        self.expert: int | None = None if self.is_expert else 0
        self.A_ERI = nn.Parameter(torch.stack([*expert_starts(context, E, rank, self.scale, init)]))
        self.B_EOR = nn.Parameter(context.full((E, context.shape[0], rank)))
        self.G_EI: nn.Parameter | None = None
        if context.role == "up":
            self.G_EI = nn.Parameter(context.normal("G", (experts, context.shape[1]), 0.02))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B" and not init.needs

    @classmethod
    def misplaced(cls, model: nn.Module, roles: Mapping[str, str]) -> dict[str, str]:
        """Matrices of a block that is no module of its own, and of one whose `up` has no adapter."""
        inside = [name for name, role in roles.items() if role in FEED_FORWARD]
        blocks = feed_forward_blocks(model) if inside else {}
        routed = {blocks[name] for name in inside if roles[name] == "up"}
        found = dict.fromkeys((name for name in inside if blocks[name] not in routed), WITHOUT_ROUTER)
        return found | {name: NO_MODULE for name in inside if not blocks[name]}

    def routed(self, x: Tensor) -> Tensor:
        """The weights (T, E) of a block's tokens (..., I)."""
        assert self.G_EI is not None, "the router of a block is asked"
        return self.weights(F.linear(x.to(self.G_EI.dtype), self.G_EI)).flatten(0, -2)

    def imbalance(self, probabilities_E: Tensor, weights_E: Tensor) -> Tensor:
        return self.top_k * super().imbalance(probabilities_E, weights_E)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        if self.expert is None:
            raise ValueError(f"mixlora: {self.matrix_name} was called outside of its feed-forward block")
        B_OR, A_RI = self.scale * self.B_EOR[self.expert], self.A_ERI[self.expert]
        y = host.base(x)
        return y + host.low_rank(host.dropped(x, self.dropout), B_OR, A_RI).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """No expert's update has a higher rank than R."""
        for B_OR, A_RI in zip(self.B_EOR, self.A_ERI, strict=True):
            assert torch.linalg.matrix_rank((B_OR @ A_RI).double()) <= len(A_RI)
