"""Arrow: Towards Modular LLMs by Building and Reusing a Library of LoRAs (Ostapenko et al., ICML 2024,
arXiv:2405.11157).

Shapes: O out, I in, R rank, K adapters; x is (..., I).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.composition import RoutedComposition, register
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.routing import top_softmax


@register("arrow")
class Arrow(RoutedComposition):
    """§4: without training, each token goes to the adapters whose most stretched direction it lies along.

    vₖ is the top right singular vector of an adapter's ΔW at this layer, as it is when it becomes active.
    The sign of vₖ has no meaning, and x keeps its length, as in PEFT; PEFT finds vₖ by 15 power iterations
    from a random start, here it is exact.
    """

    equation = "W' x = W x + Σ ωₖ ΔWₖ x, ω = softmax(top-k |vₖᵀ x| / temperature)"

    def __init__(self, names: Sequence[str], *, top_k: int = 3, temperature: float = 1.0) -> None:
        super().__init__(names)
        if top_k < 1 or not temperature > 0:
            raise ValueError(f"arrow needs top_k >= 1 and temperature > 0; got {top_k} and {temperature}")
        self.top_k, self.temperature = top_k, temperature
        self.directions: dict[str, Tensor] = {}

    @torch.no_grad()
    def enter(self, model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
        super().enter(model, layers)
        self.directions = {
            layer: torch.stack([top_direction(layer, entries) for entries in adapters.values()])
            for layer, adapters in layers.items()
        }

    def route(self, layer: str, x: Tensor, names: Sequence[str]) -> Tensor:
        v_KI = self.directions[layer]
        scores = (x.detach().to(v_KI) @ v_KI.T).abs() / self.temperature
        return top_softmax(scores, self.top_k)


def top_direction(layer: str, entries: Sequence[Any]) -> Tensor:
    """The top right singular vector v (I,) of all ΔW that one adapter has in a layer.

    ValueError for a layer that is no product with x, and where ΔW is zero or is none.
    """
    found = []
    for host, adapter in entries:
        if not host.dense:
            raise ValueError(f"arrow weighs the tokens of dense layers, and {layer} is a {host.kind}")
        adapter.require_weight("composed by arrow")
        W_OI = host.matrix().to(at_least_float32(host.matrix().dtype))
        factors = adapter.factors()
        found.append(_right(*factors) if factors else adapter.weight(W_OI) - W_OI)
    dW_OI = torch.cat(found)
    if not dW_OI.any():
        raise ValueError(f"arrow: an adapter of {layer} changes nothing yet: it has no direction")
    return torch.linalg.svd(dW_OI, full_matrices=False).Vh[0]


def _right(B_OR: Tensor, A_RI: Tensor) -> Tensor:
    """A matrix (R, I) with the singular values and right singular vectors of B A, for one product's cost."""
    return torch.linalg.qr(B_OR, mode="r").R @ A_RI
