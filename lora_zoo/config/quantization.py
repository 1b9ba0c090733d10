"""`model.quantization`: its schemes, the keys of `model.` that each takes, and the package that it needs."""

from typing import NamedTuple


class QuantizationScheme(NamedTuple):
    """The package that a scheme needs, and the further keys of `model.` that it takes."""

    package: str
    keys: tuple[str, ...] = ()


_FOUR_BITS = ("bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")
SCHEMES = {
    "nf4": QuantizationScheme("bitsandbytes", _FOUR_BITS),
    "fp4": QuantizationScheme("bitsandbytes", _FOUR_BITS),
    "int8": QuantizationScheme("bitsandbytes", ("llm_int8_threshold",)),
    "torchao_int8": QuantizationScheme("torchao"),
    "torchao_float8": QuantizationScheme("torchao"),
    "torchao_intx": QuantizationScheme("torchao", ("group_size",)),
}


__all__ = ["SCHEMES", "QuantizationScheme"]
