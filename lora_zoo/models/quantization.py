"""The quantisation that `model.quantization` asks for: transformers' configuration, or our own quantiser."""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers.quantizers.base import get_keys_to_not_convert

from lora_zoo.config.quantization import SCHEMES
from lora_zoo.config.schema import Model
from lora_zoo.injection.quantize import quantizable
from lora_zoo.quantizers.codes import BlockLevels, Quantizer, Uniform, even, normal_float


def quantization_config(settings: Model) -> Any:
    """The configuration with which transformers quantises the weights as it loads them; None for none.

    ValueError where the scheme's package is missing.
    """
    if not settings.quantization or SCHEMES[settings.quantization].own:
        return None
    scheme = SCHEMES[settings.quantization]
    if importlib.util.find_spec(scheme.package) is None:
        raise ValueError(
            f"model.quantization={settings.quantization} needs {scheme.package}, which is not installed: "
            f'pip install "lora_zoo[quant]"'
        )
    given = {key: getattr(settings, key) for key in scheme.keys if getattr(settings, key) is not None}
    make = _of_torchao if scheme.package == "torchao" else _of_bitsandbytes
    return make(settings.quantization, given)


def reference_quantizer(settings: Model) -> Quantizer | None:
    """The project's own quantiser of that name; None for no quantisation or a package's."""
    if not settings.quantization or not SCHEMES[settings.quantization].own:
        return None
    kind, width = settings.quantization[len("reference_") : -1], int(settings.quantization[-1])
    if kind == "int":
        return Uniform(width, settings.group_size or 32)
    levels = normal_float(width) if kind == "nf" else even(width)
    return BlockLevels(levels, nested=settings.bnb_4bit_use_double_quant)


def base_bytes(model: nn.Module, settings: Model, new_modules: Sequence[str] = ()) -> float:
    """The bytes of a base of this structure (`meta` will do) once it is loaded and quantised as asked."""
    whole = {id(p): p for p in (*model.parameters(), *model.buffers())}
    total = float(sum(p.nbytes for p in whole.values()))
    if not settings.quantization:
        return total
    scheme, own = SCHEMES[settings.quantization], reference_quantizer(settings)
    hosts = quantizable(model, left_out(model, new_modules), transposed=scheme.package == "bitsandbytes")
    for host in hosts.values():
        (O, I), nested = host.shape, bool(settings.bnb_4bit_use_double_quant)
        made = own.encode(torch.empty(O, I, device="meta")).values() if own else ()
        stored = scheme.bytes(O, I, nested, settings.group_size) if scheme.bytes else 0.0
        total += stored + sum(t.nbytes for t in made) - O * I * host.like.element_size()
    return total


def left_out(model: Any, new_modules: Sequence[str]) -> list[str]:
    """The modules that a quantisation leaves as they are: those that transformers would, and new ones."""
    return [*get_keys_to_not_convert(model), *new_modules]


def without_codes(model: nn.Module, new_modules: Sequence[str]) -> None:
    """Put ordinary layers in the place of new ones of bitsandbytes, in place.

    transformers takes a head with a bias for a layer to quantise. What the checkpoint lacks is never encoded,
    so that such a layer holds the drawn weights, and no codes that it could multiply by.
    """
    for name in new_modules:
        layer: Any = model.get_submodule(name)
        if type(layer).__module__.startswith("bitsandbytes."):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            drawn = {own: parameter.data for own, parameter in layer.named_parameters()}
            plain.load_state_dict(drawn, assign=True)
            model.set_submodule(name, plain)


def _of_bitsandbytes(name: str, given: Mapping[str, Any]) -> Any:
    # On a CPU each pass in evaluation mode would say that LLM.int8 casts its inputs.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    of = {"load_in_8bit": True} if name == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": name}
    return transformers.BitsAndBytesConfig(**of, **given)


def _of_torchao(name: str, given: Mapping[str, Any]) -> Any:
    from torchao import quantization
    from torchao.quantization.granularity import PerGroup

    def four_bits(group_size: int = 32) -> Any:
        return quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            granularity=PerGroup(group_size),
        )

    make: Mapping[str, Callable[..., Any]] = {
        "torchao_int8": quantization.Int8WeightOnlyConfig,
        "torchao_float8": quantization.Float8WeightOnlyConfig,
        "torchao_intx": four_bits,
    }
    return transformers.TorchAoConfig(make[name](**given))


__all__ = ["base_bytes", "left_out", "quantization_config", "reference_quantizer", "without_codes"]
