"""Linear layers of codes, which are decoded for each product.

Shapes: O out, I in; x is (..., I).
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.quantizers.codes import Quantizer, Stored


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


__all__ = ["CodedLinear"]
