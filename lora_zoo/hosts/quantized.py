"""Quantised linear layers: bitsandbytes' `Linear4bit` and `Linear8bitLt`, torch's with torchao's tensors, and
the project's own `CodedLinear`.

Shapes: O out, I in; x is (..., I). No package is imported here: who has such a layer has loaded its own.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.dtypes import at_least_float32, wide
from lora_zoo.core.host import EVERY, Rows
from lora_zoo.hosts.coders import (
    Coder,
    EightBitCoder,
    FourBitCoder,
    ReferenceCoder,
    eight_bit_values,
    four_bit_values,
    row_scales,
)
from lora_zoo.hosts.find import HOSTS
from lora_zoo.hosts.linear import LinearHost
from lora_zoo.quantizers.coded_linear import CodedLinear


@HOSTS.register("quantised linear")
class QuantizedHost(LinearHost):
    """A linear layer of codes (bitsandbytes, torchao): W is their values, decoded where it is read.

    W is float32 or wider and is not kept; the frozen output is the layer's own, which may round x as well
    (LLM.int8).
    """

    stores_codes = True
    unmergeable = "it stores codes, which a merge would round anew; python -m lora_zoo.merge dequantises"

    def __init__(self, layer: nn.Module, part: Rows = EVERY) -> None:
        super().__init__(layer, part)
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # Else a pass in evaluation mode on such a CPU rounds the scales to bfloat16, for good.
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return cls.read_of(layer) is not None

    @staticmethod
    def read_of(layer: nn.Module) -> Any:
        """The function that decodes such a layer; None for a layer without codes, or of another package."""
        if isinstance(layer, CodedLinear):
            return CodedLinear.values
        classes = {c.__name__ for c in type(layer).__mro__ if c.__module__.startswith("bitsandbytes.")}
        weight: Any = getattr(layer, "weight", None)
        if "Linear4bit" in classes:
            return four_bits
        if "Linear8bitLt" in classes:
            return eight_bits if weight.dtype == torch.int8 else None
        return own_values if type(layer) is nn.Linear and decodable(weight) else None

    @property
    def coder(self) -> Coder | None:
        if not self.whole:
            return None
        layer: Any = self.layer
        read = self.read_of(layer)
        if read is CodedLinear.values:
            return ReferenceCoder(layer)
        if read is eight_bits:
            return EightBitCoder(layer)
        return FourBitCoder(layer) if read is four_bits else None

    @property
    def shape(self) -> tuple[int, int]:
        O: Any = self.layer.out_features
        I: Any = self.layer.in_features
        part = self.part
        return (len(range(O)[part]) if isinstance(part, slice) else len(part)), I

    @property
    def like(self) -> Tensor:
        weight: Any = self.layer.weight
        dtype = at_least_float32(weight.dtype) if decodable(weight) else torch.float32
        if isinstance(self.layer, CodedLinear):
            dtype = next(t.dtype for t in self.layer.buffers() if t.is_floating_point())
        return torch.empty(0, dtype=dtype, device=weight.device)

    @torch.no_grad()
    def tensor(self) -> Tensor:
        values: Tensor = self.read_of(self.layer)(self.layer)
        return values

    def product(self, x: Tensor) -> Tensor:
        y, b_O = self.rows_of(self.layer.forward(x)), self.own_bias
        return y if b_O is None else y - b_O.to(y.dtype)


def decodable(weight: Any) -> bool:
    """True for a tensor of a class that knows the values of its codes, as torchao's do."""
    return isinstance(weight, Tensor) and type(weight).dequantize is not Tensor.dequantize


def own_values(layer: Any) -> Tensor:
    """W (O, I) of a layer with such a tensor, in float32 or wider."""
    values: Tensor = layer.weight.dequantize()
    return wide(values)


def four_bits(layer: Any) -> Tensor:
    """W (O, I) of bitsandbytes' `Linear4bit`, in float32. ValueError where its codes are not those of W."""
    state = getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)
    if state is None:
        raise ValueError("a Linear4bit has no codes yet: they are made as the model moves to its device")
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            "a pass in evaluation mode on this CPU has repacked the codes of a Linear4bit, and rounded their "
            "scales to bfloat16: load the model anew and adapt it before its first pass"
        )
    return four_bit_values(layer.weight.data, state)


def eight_bits(layer: Any) -> Tensor:
    """W (O, I) of bitsandbytes' `Linear8bitLt`, in float32: rows of int8 codes with one scale each."""
    return eight_bit_values(layer.weight.data, row_scales(layer))


def numel(parameter: Tensor) -> int:
    """The number of weights in a parameter, of which 4-bit codes hold several in each element."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())
