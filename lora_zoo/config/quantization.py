"""`model.quantization`: its schemes, the keys of `model.` that each takes, and the package that it needs."""

from dataclasses import fields
from typing import NamedTuple

from lora_zoo.config.schema import QUANTIZATIONS, Model


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
assert (*SCHEMES,) == QUANTIZATIONS


def check_quantization(model: Model) -> None:
    """Raise ValueError for a key of a scheme that is not the model's."""
    own = SCHEMES[model.quantization].keys if model.quantization else ()
    of = {key: [name for name, scheme in SCHEMES.items() if key in scheme.keys] for key in _keys()}
    for key, names in of.items():
        given = getattr(model, key)
        if given is not None and given is not False and key not in own:
            chosen = f"model.quantization={model.quantization or 'null'}"
            raise ValueError(f"model.{key}={given} has no effect with {chosen}; it is for {', '.join(names)}")


def _keys() -> list[str]:
    every = {key for scheme in SCHEMES.values() for key in scheme.keys}
    return [f.name for f in fields(Model) if f.name in every]


__all__ = ["SCHEMES", "QuantizationScheme", "check_quantization"]
