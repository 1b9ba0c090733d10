"""Dense layers: torch's Linear and transformers' Conv1D."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.host import LayerHost
from lora_zoo.hosts.coders import Coder, ValueCoder
from lora_zoo.hosts.find import HOSTS


@HOSTS.register("linear")
class LinearHost(LayerHost):
    """`torch.nn.Linear`: stored as (O, I)."""

    dense = linear = can_have_bias = True
    peft_layer = "linear"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        # Exact type: a subclass (quantised, or bypassed by a fused kernel) needs a host of its own.
        if type(layer) is not nn.Linear and type(layer).__name__ != "FalconLinear":
            return False
        weight: Any = layer.weight
        plain = type(weight).dequantize is Tensor.dequantize  # a tensor of codes has a way of its own
        return plain and weight.is_floating_point()

    @property
    def coder(self) -> Coder | None:
        return ValueCoder(self.layer) if self.whole and hasattr(self.layer, "rounding") else None

    def view(self, stored: Tensor) -> Tensor:
        return stored

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        return F.linear(x.to(W_OI.dtype), W_OI)


@HOSTS.register("transformers Conv1D")
class Conv1DHost(LinearHost):
    """transformers' `Conv1D` (GPT-2): a linear layer stored transposed, as (I, O)."""

    transposed = True

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")

    def view(self, stored: Tensor) -> Tensor:
        return stored.T
