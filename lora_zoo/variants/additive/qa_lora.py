"""QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models (Xu et al., ICLR 2024)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled


@register("qa_lora")
class QALoRA(Product, Scaled):
    """§3.3: LoRA on the mean of each group of L inputs, so that ΔW is one number for a row's group.

    On codes with a zero point for each of these groups (`model.quantization=reference_int4`) it moves the
    zero points alone, and the integers stay: `lora_zoo.injection.folding.fold` merges it so. With
    `group_size=1` it is LoRA. The official code takes the mean, the paper's text the sum, which differ by L
    in the scale; A begins as Xavier's uniform, as in that code. The last group may be smaller.
    """

    title = "QA-LoRA"
    paper = "arXiv:2309.14717"
    equation = "W' = W + (α/r) B A P, P x = means of L inputs each"
    count = "R * (O + ceil(I / group_size))"
    paper_alpha = 16.0

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        group_size: int = 32,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        (O, I), self.group_size = context.shape, group_size
        groups = math.ceil(I / group_size)
        self.scale = self.scale_of(alpha, rank)
        bound = math.sqrt(6 / (groups + rank))
        self.A_RG = nn.Parameter(context.uniform("A", (rank, groups), bound))
        self.B_OR = nn.Parameter(context.full((O, rank)))
        self.inputs = I
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        L = hyper["group_size"]
        return None if L >= 1 else f"group_size must be at least 1; got {L}"

    def factors(self) -> tuple[Tensor, Tensor]:
        """s B (O, R), and A P (R, I): each group's entry shared equally by its inputs."""
        spread_RI = self.A_RG.repeat_interleave(self.group_size, dim=1)[:, : self.inputs]
        size_I = spread_RI.new_full((self.inputs,), float(self.group_size))
        size_I[self.inputs - self.inputs % self.group_size :] = self.inputs % self.group_size
        return self.scale * self.B_OR, spread_RI / size_I

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is the same for all inputs of a group, so that zero points can hold it."""
        for group in (self.weight(W_OI) - W_OI).split(self.group_size, dim=1):
            torch.testing.assert_close(group, group[:, :1].expand_as(group), rtol=1e-4, atol=1e-5)
