"""`model.quantization`: its schemes, the keys of `model.` that each takes, and the package that it needs."""

import math
from collections.abc import Callable
from typing import NamedTuple

Bytes = Callable[[int, int, bool, int | None], float]
"""From O, I, the double quantisation and the group size of a matrix (O, I) to the bytes that it takes."""


def _four(O: int, I: int, nested: bool, group: int | None) -> float:
    """Codes of half a byte, and a scale for each 64: nested, a byte, with one for each 256 and an offset."""
    blocks = math.ceil(O * I / 64)
    return O * I / 2 + (blocks + 4 * math.ceil(blocks / 256) + 4 if nested else 4 * blocks)


def _rows(O: int, I: int, nested: bool, group: int | None) -> float:
    """Codes of a byte, and a scale for each row."""
    return O * I + 4 * O


def _rows_and_zeros(O: int, I: int, nested: bool, group: int | None) -> float:
    """The same, and a zero point of a byte for each row."""
    return O * I + 5 * O


def _groups(O: int, I: int, nested: bool, group: int | None) -> float:
    """Codes of a byte, as torchao holds them before it packs them; a scale and a zero point a group."""
    return O * I * (1 + 5 / (group or 32))


class QuantizationScheme(NamedTuple):
    """The package that a scheme needs, the further keys of `model.` that it takes, the bytes of a matrix."""

    package: str
    keys: tuple[str, ...] = ()
    bytes: Bytes | None = None
    """None for the project's own quantisers, which can be asked."""

    @property
    def own(self) -> bool:
        """True for the project's own quantisers."""
        return self.package == "lora_zoo"


REFERENCE_WIDTHS = (2, 3, 4, 8)
"""Bits of a code of the project's own quantisers."""
_FOUR_BITS = ("bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")
SCHEMES = {
    "nf4": QuantizationScheme("bitsandbytes", _FOUR_BITS, _four),
    "fp4": QuantizationScheme("bitsandbytes", _FOUR_BITS, _four),
    "int8": QuantizationScheme("bitsandbytes", ("llm_int8_threshold",), _rows),
    "torchao_int8": QuantizationScheme("torchao", (), _rows_and_zeros),
    "torchao_float8": QuantizationScheme("torchao", (), _rows),
    "torchao_intx": QuantizationScheme("torchao", ("group_size",), _groups),
    **{f"reference_nf{b}": QuantizationScheme("lora_zoo", _FOUR_BITS[:1]) for b in REFERENCE_WIDTHS},
    "reference_even4": QuantizationScheme("lora_zoo", _FOUR_BITS[:1]),
    **{f"reference_int{b}": QuantizationScheme("lora_zoo", ("group_size",)) for b in REFERENCE_WIDTHS},
}
KEYS = tuple(dict.fromkeys(key for scheme in SCHEMES.values() for key in scheme.keys))
"""The further keys of `model.` that any scheme takes."""


__all__ = ["KEYS", "SCHEMES", "QuantizationScheme"]
