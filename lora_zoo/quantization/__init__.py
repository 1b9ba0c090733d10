"""The project's own quantisation: quantisers in plain torch, layers of codes, errors of starts, widths."""

from lora_zoo.quantization.layers import CodedLinear, quantize
from lora_zoo.quantization.quantizers import Levels, Quantizer, Uniform, even, normal_float

__all__ = ["CodedLinear", "Levels", "Quantizer", "Uniform", "even", "normal_float", "quantize"]
