"""LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning (Zhang, 2023)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.components import inverse_gram
from lora_zoo.variants.low_rank import Additive, LowRank


class Projection(AdapterHooks):
    """Version 2's correction: B moves so that s B A follows the full gradient as closely as A's rows allow.

    `mode=freeze` (version 1) leaves B's gradient as it is; `mode=projected` multiplies it by (A Aᵀ)⁻¹ / s².
    """

    def __init__(
        self, adapters: Mapping[str, LowRank], *, mode: Literal["freeze", "projected"] = "freeze"
    ) -> None:
        super().__init__(adapters)
        self.projected = list(adapters.values()) if mode == "projected" else []

    @torch.no_grad()
    def on_after_backward(self, progress: Progress) -> None:
        for adapter in self.projected:
            B_OR, scale = adapter.B_OR, adapter.scale
            if B_OR.grad is not None:
                B_OR.grad = B_OR.grad @ inverse_gram(adapter.A_RI, 1e-8) / scale**2


@register("lora_fa")
class LoRAFA(Additive):
    """§3: A stays at its random start, B alone is trained: of x only x A (R numbers a token) is kept."""

    title = "LoRA-FA"
    paper = "arXiv:2308.03303"
    equation = "W' = W + (α/r) B A, A frozen"
    count = "R * O"
    peft = LoraFormat(reads=False)
    hooks = Projection

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.A_RI.requires_grad_(False)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero != "A" and not init.control

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW stays in the row space of the frozen A."""
        dW_OI = self.weight(W_OI) - W_OI
        inside_OI = dW_OI @ torch.linalg.pinv(self.A_RI) @ self.A_RI
        torch.testing.assert_close(inside_OI, dW_OI, rtol=1e-4, atol=1e-5)
