"""Quantise a model in plain torch: layers of codes in the place of its linear layers."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from lora_zoo.core.errors import unknown
from lora_zoo.core.host import Host
from lora_zoo.hosts.find import find_host
from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.wrappers import put
from lora_zoo.quantizers import CodedLinear, Quantizer


def quantizable(model: nn.Module, keep: Collection[str] = (), *, transposed: bool = False) -> dict[str, Host]:
    """The linear layers of a model that can become codes, by name; none called `keep`, or inside of such.

    Those that store W transposed are among them if asked for: bitsandbytes takes them, others do not.
    """
    kept = tuple(f"{name}." for name in keep)
    return {
        name: host
        for name, module in named_base_modules(model)
        if (host := find_host(module)) and host.dense and not host.stores_codes
        if (transposed or not host.transposed) and not f"{name}.".startswith(kept)
    }


@torch.no_grad()
def quantize(
    model: nn.Module, quantizer: Quantizer | Mapping[str, Quantizer], keep: Collection[str] = ()
) -> list[str]:
    """Put layers of codes in the place of the model's linear layers, and return their names.

    Those called `keep`, or inside of such a module, stay. A mapping names the layers that become codes, each
    with its own quantiser. ValueError for a layer that the quantiser cannot cut into groups, for a name that
    is no such layer's, or where none is left: layers that store W transposed (transformers' Conv1D) stay.
    """
    hosts = quantizable(model, keep)
    chosen = {name: quantizer for name in hosts} if isinstance(quantizer, Quantizer) else quantizer
    if strange := next((name for name in chosen if name not in hosts), ""):
        raise ValueError(unknown("linear layer", strange, hosts))
    found = [name for name in hosts if name in chosen]
    if not found:
        raise ValueError("no linear layer is left to quantise")
    for name in found:
        try:
            put(model, name, CodedLinear(chosen[name], hosts[name].matrix(), hosts[name].own_bias))
        except ValueError as error:
            raise ValueError(f"{name} cannot be quantised: {error}") from error
    return found


__all__ = ["quantizable", "quantize"]
