"""Quantise a model in plain torch: layers of codes in the place of its linear layers."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from lora_zoo.hosts.find import find_host
from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.wrappers import put
from lora_zoo.quantizers import CodedLinear, Quantizer


@torch.no_grad()
def quantize(
    model: nn.Module, quantizer: Quantizer | Mapping[str, Quantizer], keep: Collection[str] = ()
) -> list[str]:
    """Put layers of codes in the place of the model's linear layers, and return their names.

    Those called `keep`, or inside of such a module, stay. A mapping names the layers that become codes, each
    with its own quantiser. ValueError for a layer that the quantiser cannot cut into groups, or where none is
    left: layers that store W transposed (transformers' Conv1D) stay.
    """
    kept = tuple(f"{name}." for name in keep)
    hosts = {
        name: host
        for name, module in named_base_modules(model)
        if (host := find_host(module)) and host.dense and not (host.stores_codes or host.transposed)
    }
    chosen = {name: quantizer for name in hosts} if isinstance(quantizer, Quantizer) else quantizer
    found = [name for name in hosts if name in chosen and not f"{name}.".startswith(kept)]
    if not found:
        raise ValueError("no linear layer is left to quantise")
    for name in found:
        try:
            put(model, name, CodedLinear(chosen[name], hosts[name].matrix(), hosts[name].own_bias))
        except ValueError as error:
            raise ValueError(f"{name} cannot be quantised: {error}") from error
    return found


__all__ = ["quantize"]
