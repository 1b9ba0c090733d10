"""`model.quantization`: its schemes, the keys of `model.` that each takes, and the package that it needs."""

from typing import NamedTuple


class QuantizationScheme(NamedTuple):
    """The package that a scheme needs, and the further keys of `model.` that it takes."""

    package: str
    keys: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """True for the project's own quantisers."""
        return self.package == "lora_zoo"


REFERENCE_WIDTHS = (2, 3, 4, 8)
"""Bits of a code of the project's own quantisers."""
_FOUR_BITS = ("bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")
SCHEMES = {
    "nf4": QuantizationScheme("bitsandbytes", _FOUR_BITS),
    "fp4": QuantizationScheme("bitsandbytes", _FOUR_BITS),
    "int8": QuantizationScheme("bitsandbytes", ("llm_int8_threshold",)),
    "torchao_int8": QuantizationScheme("torchao"),
    "torchao_float8": QuantizationScheme("torchao"),
    "torchao_intx": QuantizationScheme("torchao", ("group_size",)),
    **{f"reference_nf{b}": QuantizationScheme("lora_zoo", _FOUR_BITS[:1]) for b in REFERENCE_WIDTHS},
    "reference_even4": QuantizationScheme("lora_zoo", _FOUR_BITS[:1]),
    **{f"reference_int{b}": QuantizationScheme("lora_zoo", ("group_size",)) for b in REFERENCE_WIDTHS},
}
KEYS = tuple(dict.fromkeys(key for scheme in SCHEMES.values() for key in scheme.keys))
"""The further keys of `model.` that any scheme takes."""


__all__ = ["KEYS", "SCHEMES", "QuantizationScheme"]
