"""LoRETTA: Low-Rank Economic Tensor-Train Adaptation (Yang et al., NAACL 2024), the form for weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled
from lora_zoo.variants.tensor_train import (
    Shape,
    assert_train,
    contracted,
    core_count,
    core_shapes,
    drawn,
    refused,
)


@register("loretta_rep")
class LoRETTARep(Product, Scaled):
    """§3.2: LoRA whose A and B are tensor trains, with cores of the side's three factors and of the rank.

    Cores begin as in the official code, apart from B's last one, which is zero: there ΔW is not 0 at step 0.
    That code takes the factors of a side from a table; here they are as equal as its primes allow.
    """

    title = "LoRETTA (weights)"
    paper = "arXiv:2402.11417"
    equation = "W' = W + (α/r) B A, B and A tensor trains"
    count = ""  # no formula: it depends on the factors of the sides
    paper_alpha = 16.0  # the code's; it stays fixed while the rank varies

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        tensor_rank: int = 5,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.rank, self.scale = rank, self.scale_of(alpha, rank)
        shapes_of_A, shapes_of_B = core_shapes(context.shape, [rank], tensor_rank)
        self.A, self.B = drawn(context, "A", shapes_of_A, rank), drawn(context, "B", shapes_of_B, rank)
        nn.init.zeros_(self.B[-1])
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def refusal(cls, kind: str, shape: Shape, hyper: Mapping[str, Any]) -> str | None:
        return refused(hyper["tensor_rank"])

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[Shape, Mapping[str, Any]]]) -> int:
        return sum(core_count(shape, [own["rank"]], own["tensor_rank"]) for shape, own in matrices)

    def factors(self) -> tuple[Tensor, Tensor]:
        A_SR, B_RS = contracted(self.A).view(-1, self.rank), contracted(self.B).view(self.rank, -1)
        return self.scale * B_RS.T, A_SR.T

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        for cores in (self.A, self.B):
            assert_train(cores)
