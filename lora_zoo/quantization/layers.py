"""Linear layers of codes, decoded for each product, and the models that are made of them.

Shapes: O out, I in; x is (..., I).
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.quantization.quantizers import Quantizer, Stored


class CodedLinear(nn.Module):
    """A linear layer that keeps W as codes: `weight` are the codes (O, I), one byte each.

    The bits that a packed layer would take are the quantiser's `bits`.
    """

    def __init__(self, quantizer: Quantizer, W_OI: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.out_features, self.in_features = W_OI.shape
        stored = quantizer.encode(W_OI)
        self.weight = nn.Parameter(stored.pop("codes"), requires_grad=False)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def stored(self) -> Stored:
        """The codes and scales that the quantiser decodes."""
        return {"codes": self.weight.data, **dict(self.named_buffers(recurse=False))}

    def put(self, stored: Mapping[str, Tensor]) -> None:
        """Take other codes and scales, in place."""
        for name, tensor in self.stored().items():
            tensor.copy_(stored[name])

    def values(self) -> Tensor:
        """W (O, I) as the codes have it."""
        return self.quantizer.decode(self.stored())

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.values().to(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, quantizer={self.quantizer}"


@torch.no_grad()
def quantize(
    model: nn.Module, quantizer: Quantizer | Mapping[str, Quantizer], keep: Collection[str] = ()
) -> list[str]:
    """Put layers of codes in the place of the model's linear layers, and return their names.

    Those called `keep`, or inside of such a module, stay. A mapping names the layers that become codes, each
    with its own quantiser. ValueError for a layer that the quantiser cannot cut into groups, or where none is
    left: layers that store W transposed (transformers' Conv1D) stay.
    """
    from lora_zoo.hosts.find import find_host
    from lora_zoo.injection.base_model import named_base_modules
    from lora_zoo.injection.wrappers import put

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


__all__ = ["CodedLinear", "quantize"]
