"""The way that each adapter takes in a forward pass: its fused kernel, or plain operations and why."""

from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.host import LayerHost
from lora_zoo.injection.inject import Injection


@torch.no_grad()
def paths(adapted: Injection, *arguments: Any, **inputs: Any) -> dict[str, str]:
    """A matrix's name -> "fused", or "plain: …" with the reason, in a pass of the model over these inputs.

    A matrix that the pass does not reach is left out, and so is one whose module reads the weight by itself.
    """
    found: dict[str, str] = {}
    counts = adapted.counter.counts
    try:
        for name, adapter in adapted.adapters.items():
            adapter.__dict__["output"] = _noting(adapter, name, found)
        adapted.model(*arguments, **inputs)
    finally:
        for adapter in adapted.adapters.values():
            adapter.__dict__.pop("output", None)
        adapted.counter.counts = counts
    return found


def _noting(adapter: Adapter, name: str, found: dict[str, str]) -> Any:
    output = adapter.output

    def note(x: Tensor, host: LayerHost) -> Tensor:
        found[name] = adapter.path(x, host)
        return output(x, host)

    return note
