"""AM-LoRA: Learning Attentional Mixture of LoRAs for Language Model Continual Learning (Liu et al., 2024).

Shapes: O out, I in, R rank, K tasks before the newest, T all tasks; x is (..., I).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.host import LayerHost
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.variants.continual.task_loras import ExpertsOfTasks, TaskLoRAs
from lora_zoo.variants.routers import RouterRate


class SparseSelector(ExpertsOfTasks, RouterRate):
    """λ Σ |V| over the selectors of all matrices. ValueError for a negative λ."""

    def __init__(self, adapters: Mapping[str, Any], *, sparsity: float = 1e-4, **rate: float) -> None:
        super().__init__(adapters, **rate)
        if sparsity < 0:
            raise ValueError(f"am_lora: sparsity must be at least 0; got {sparsity}")
        self.sparsity = sparsity

    def expert_of(self, name: str) -> int | None:
        number = super().expert_of(name)
        return None if number is None else 1 + number  # the zero-LoRA is the first

    def regularizer(self) -> Tensor | float:
        return self.sparsity * sum((a.V_TO.abs().sum() for a in self.adapters.values()), torch.zeros(()))


@register("am_lora")
class AMLoRA(TaskLoRAs):
    """Attention over the outputs of all tasks' LoRAs and of a zero-LoRA, which adds nothing.

    A row of V a task gives each token's score of that LoRA; the zero-LoRA scores 0. The newest LoRA and all
    rows of V train. No source settles these: the score is a number a token (a matrix in V's place would give
    one a feature), σ = tanh, λ = 1e-4, a new row of V is drawn as a
    linear layer's, and the scores see no dropout.
    """

    title = "AM-LoRA"
    paper = "arXiv:2409.19611"
    equation = "W' x = W x + Σ_i a_i h_i, h_i = s B_i A_i x, a = softmax(0, σ(v_1·h_1), …); loss + λ Σ |V|"
    count = "R * (O + I) + (1 if tasks == 'auto' else len(tasks)) * O"
    hooks = SparseSelector
    routers = ("V_TO",)

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        O, _ = context.shape
        self.V_TO = nn.Parameter(
            context.uniform("V", (len(self.tasks), O), kaiming_bound(O, 1 / math.sqrt(3)))
        )

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return "its selector weighs tokens, of which there are none" if kind == "convolution" else None

    @torch.no_grad()
    def succeed(self, before: Mapping[str, Tensor]) -> None:
        super().succeed(before)
        self.V_TO[:-1].copy_(before["V_TO"])

    def attention(self, h_TO: Tensor) -> Tensor:
        """The weights (..., 1 + T), the zero-LoRA's first, of outputs (..., T, O)."""
        scores_T = (h_TO * self.V_TO.to(h_TO.dtype)).sum(-1).tanh()
        scores = torch.cat([torch.zeros_like(scores_T[..., :1]), scores_T], dim=-1)
        return scores.softmax(-1, dtype=at_least_float32(h_TO.dtype)).to(h_TO.dtype)

    def outputs(self, x: Tensor, host: LayerHost) -> Tensor:
        """The outputs (..., T, O) of all tasks' LoRAs."""
        return torch.stack([self.one(number, x, host) for number in range(len(self.tasks))], dim=-2)

    def branch(self, x: Tensor, dropped: Tensor, host: LayerHost) -> Tensor:
        h_TO = self.outputs(dropped, host)
        seen_TO = h_TO if dropped is x else self.outputs(x, host)
        a_T = self.attention(seen_TO)
        self.note(a_T)
        return (a_T[..., 1:, None] * h_TO).sum(-2)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Weights add up to 1; where every LoRA gives zero they are alike."""
        B_TOR, A_TRI = self.stacked()
        h_TO = torch.einsum("tor,tri->to", B_TOR, A_TRI)
        torch.testing.assert_close(self.attention(h_TO).sum(), torch.ones_like(h_TO[0, 0]))
        alike = self.attention(torch.zeros_like(h_TO))
        torch.testing.assert_close(alike, torch.full_like(alike, 1 / (1 + len(self.tasks))))
