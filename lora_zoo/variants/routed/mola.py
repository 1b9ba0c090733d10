"""MoLA: Higher Layers Need More LoRA Experts (Gao et al., 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.variants import register
from lora_zoo.variants.routed.mixture import ExpertPairs


@register("mola")
class MoLA(ExpertPairs):
    """§3: the two likeliest LoRAs of a layer's experts, of which the upper layers have more.

    `by_depth` holds the number of experts in each of so many parts of the depth, from the first layer to the
    last: 2, 4, 6, 8 is the paper's MoLA-▽. A matrix outside of all layers is of the first part. `experts` is
    a number for all of them instead. `balance` is the weight of Switch's loss, which the official code adds
    where it is asked to (obalance), at 0.001.
    """

    paper = "arXiv:2402.08562"
    equation = "W' x = W x + (α/r) Σᵢ ωᵢ Bᵢ Aᵢ x, ω = the top_k of softmax(G x) over their sum"
    count = "(by_depth[0] if experts == 'auto' else experts) * (R * (O + I) + I)"
    targets = ("q", "k", "v", "o", "gate", "up", "down")
    paper_alpha = 16.0

    def __init__(
        self,
        context: LayerContext,
        *,
        experts: int | Literal["auto"] = "auto",
        by_depth: Sequence[int] = (2, 4, 6, 8),
        top_k: int = 2,
        balance: float = 0.001,
        **hyper: Any,
    ) -> None:
        number = by_depth[0] if experts == "auto" else experts
        super().__init__(context, experts=number, top_k=top_k, balance=balance, **hyper)

    @classmethod
    def of_layer(cls, hyper: Mapping[str, Any], layer: int, layers: int) -> dict[str, Any]:
        """The experts of a matrix at this depth."""
        if not hyper["by_depth"]:
            raise ValueError(
                "mola: by_depth must hold the experts of one part of the layers at least; got []"
            )
        parts = hyper["by_depth"]
        return {"experts": parts[layer * len(parts) // layers]} if hyper["experts"] == "auto" else {}
