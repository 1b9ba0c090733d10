"""Make the codes of a quantised layer anew, from a matrix W (O, I) of one's choice.

bitsandbytes is not imported here: who has such a layer has loaded it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.dtypes import wide
from lora_zoo.quantizers.coded_linear import CodedLinear

Rounding = Callable[[Tensor], Tensor]
"""From W (O, I) to the values of its codes."""


class Coder(ABC):
    """Writes codes into one layer. `rounding` does not hold the layer."""

    def __init__(self, layer: Any, rounding: Rounding) -> None:
        self.layer, self.rounding = layer, rounding

    @abstractmethod
    def codes(self) -> Any:
        """A copy of the layer's codes, on the CPU."""

    @abstractmethod
    def put(self, codes: Any) -> None:
        """Write codes into the layer, in place."""

    @abstractmethod
    def encode(self, W_OI: Tensor) -> Any:
        """The codes of `W_OI`, for `put`."""


class ReferenceCoder(Coder):
    """Of the project's own `CodedLinear`."""

    def __init__(self, layer: CodedLinear) -> None:
        super().__init__(layer, layer.quantizer.rounded)

    def codes(self) -> Any:
        return {name: tensor.cpu().clone() for name, tensor in self.layer.stored().items()}

    def put(self, codes: Any) -> None:
        self.layer.put(codes)

    def encode(self, W_OI: Tensor) -> Any:
        return self.layer.quantizer.encode(W_OI)


class FourBitCoder(Coder):
    """Of bitsandbytes' `Linear4bit`."""

    def __init__(self, layer: Any) -> None:
        weight = layer.weight
        names = ("compress_statistics", "blocksize", "quant_type", "quant_storage")
        self._make = partial(_params, type(weight), {name: getattr(weight, name) for name in names})
        super().__init__(layer, partial(_rounded, self._make))

    def codes(self) -> Any:
        return self.layer.weight.data.cpu().clone(), copy.deepcopy(self.layer.weight.quant_state)

    def put(self, codes: Any) -> None:
        data, state = codes
        state.to(self.layer.weight.device)
        self.layer.weight.data.copy_(data)
        self.layer.weight.quant_state = self.layer.quant_state = state

    def encode(self, W_OI: Tensor) -> Any:
        made = self._make(W_OI)
        return made.data, made.quant_state


class EightBitCoder(Coder):
    """Of bitsandbytes' `Linear8bitLt`: rows of int8 codes with one scale each, of W rounded to float16."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, _eight_bits_rounded)

    def codes(self) -> Any:
        return self.layer.weight.data.cpu().clone(), row_scales(self.layer).cpu().clone()

    def put(self, codes: Any) -> None:
        data, scales_O = codes
        self.layer.weight.data.copy_(data)
        row_scales(self.layer).copy_(scales_O)

    def encode(self, W_OI: Tensor) -> Any:
        return _eight_bits(W_OI)


class ValueCoder(Coder):
    """Of a plain layer that holds the values of codes, since it was dequantised."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer, layer.rounding)  # type: ignore[arg-type]

    def codes(self) -> Any:
        return self.layer.weight.detach().cpu().clone()

    def put(self, codes: Any) -> None:
        self.layer.weight.data.copy_(codes)

    def encode(self, W_OI: Tensor) -> Any:
        return self.rounding(W_OI)


def _params(cls: Any, options: dict[str, Any], W_OI: Tensor) -> Any:
    return cls(W_OI.contiguous(), requires_grad=False, **options).to(W_OI.device)


def _rounded(make: Callable[[Tensor], Any], W_OI: Tensor) -> Tensor:
    made = make(wide(W_OI))
    return four_bit_values(made.data, made.quant_state)


def _eight_bits(W_OI: Tensor) -> tuple[Tensor, Tensor]:
    data, scales_O, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(W_OI.half().contiguous())
    return data, scales_O


def _eight_bits_rounded(W_OI: Tensor) -> Tensor:
    return eight_bit_values(*_eight_bits(W_OI))


def eight_bit_values(codes: Tensor, scales_O: Tensor) -> Tensor:
    """The values (O, I) of bitsandbytes' int8 codes, in float32."""
    return codes.float() * (scales_O[:, None] / 127)


def row_scales(layer: Any) -> Tensor:
    """The scales (O,) of a `Linear8bitLt`: its first pass moves them from the weight to the layer's state."""
    scales_O: Tensor = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return scales_O


def four_bit_values(codes: Tensor, state: Any) -> Tensor:
    """The values (O, I) of bitsandbytes' packed 4-bit codes, in float32."""
    ops, scales = torch.ops.bitsandbytes, state.absmax
    if state.nested:
        of = state.state2
        scales = ops.dequantize_blockwise(scales, of.absmax, of.code, of.blocksize, torch.float32)
        scales = scales + state.offset
    (O, I) = state.shape
    values: Tensor = ops.dequantize_4bit(
        codes, scales, state.blocksize, state.quant_type, (O, I), torch.float32
    )
    return values


__all__ = [
    "Coder",
    "EightBitCoder",
    "FourBitCoder",
    "ReferenceCoder",
    "Rounding",
    "ValueCoder",
    "eight_bit_values",
    "four_bit_values",
    "row_scales",
]
