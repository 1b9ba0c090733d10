"""The project's own quantisers, in plain torch, and a layer of codes."""

from lora_zoo.quantizers.coded_linear import CodedLinear
from lora_zoo.quantizers.codes import BlockLevels, Quantizer, Uniform, even, normal_float

__all__ = ["BlockLevels", "CodedLinear", "Quantizer", "Uniform", "even", "normal_float"]
