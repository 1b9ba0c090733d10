"""LoRETTA: Low-Rank Economic Tensor-Train Adaptation (Yang et al., NAACL 2024), the form for adapters.

Shapes: O out, R the bottleneck, H what it reads (the layer's O outputs, or its I inputs).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.variants import register
from lora_zoo.variants.nonlinear.hidden_layer import Activation, HiddenLayer, Mode
from lora_zoo.variants.tensor_train import (
    Shape,
    assert_train,
    contracted,
    core_count,
    core_shapes,
    drawn,
    refused,
    split_evenly,
)


@register("loretta_adp")
class LoRETTAAdp(HiddenLayer):
    """§3.1: a bottleneck adapter whose two matrices are tensor trains; the bottleneck has two of the cores.

    As in loretta_rep, cores begin as in the official code but for a last one of zeros, and sides are split
    evenly: 64 = 8 · 8 is that code's. Its biases begin random; here they are zero, so that step 0 is the
    base. Norms and a tensorised classifier, which it trains as well, are left to `modules_to_save`.
    """

    title = "LoRETTA (adapters)"
    paper = "arXiv:2402.11417"
    equation = "W' x = y + s (U φ(D h + a) + c), U and D tensor trains; series: h = y, parallel: h = x"
    count = ""  # no formula: it depends on the factors of the sides

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 64,
        tensor_rank: int = 5,
        mode: Mode = "series",
        activation: Activation = "relu",
        scale: float = 1.0,
    ) -> None:
        super().__init__(context, rank=rank, mode=mode, activation=activation, scale=scale)
        self.rank, sides = rank, (context.shape[0], self.reads(context.shape, mode))
        shapes_of_D, shapes_of_U = core_shapes(sides, split_evenly(rank, 2), tensor_rank)
        self.D, self.U = drawn(context, "D", shapes_of_D, rank), drawn(context, "U", shapes_of_U, rank)
        nn.init.zeros_(self.U[-1])

    @classmethod
    def refusal(cls, kind: str, shape: Shape, hyper: Mapping[str, Any]) -> str | None:
        return refused(hyper["tensor_rank"]) or super().refusal(kind, shape, hyper)

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[Shape, Mapping[str, Any]]]) -> int:
        found = 0
        for shape, own in matrices:
            sides, rank = (shape[0], cls.reads(shape, own["mode"])), own["rank"]
            found += core_count(sides, split_evenly(rank, 2), own["tensor_rank"]) + rank + shape[0]
        return found

    def down(self) -> Tensor:
        return contracted(self.D).view(-1, self.rank).T

    def up(self) -> Tensor:
        return contracted(self.U).view(self.rank, -1).T

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        super().law(W_OI)
        for cores in (self.D, self.U):
            assert_train(cores)
