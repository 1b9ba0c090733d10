"""Dequantise a model: plain layers with the values of its codes.

An adapter of a quantised base corrects those values, not the ones from before the quantisation.
"""

import contextlib
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.quantizers import AutoQuantizationConfig

from lora_zoo.config.schema import Model
from lora_zoo.core.host import LayerHost
from lora_zoo.hosts.quantized import decodable
from lora_zoo.injection.quantized_base import quantized_layers
from lora_zoo.injection.wrappers import put
from lora_zoo.models.base import Base
from lora_zoo.models.loading import Loaded, load_model, stored_scheme


def scheme_of(settings: Model) -> str | None:
    """The base's quantisation: `model.quantization`, or its config.json's; None for an ordinary model."""
    return settings.quantization or (stored_scheme(settings) or {}).get("quant_method")


def load_dequantised(base: Base, tokenizer: Any) -> Loaded:
    """The quantised base in plain layers of float32; without the scheme in its configuration.

    Raises ValueError where the scheme's package is missing, or nothing here turns its codes into numbers.
    """
    settings = base.model
    if (given := stored_scheme(settings)) is not None:
        try:
            known = AutoQuantizationConfig.from_dict(dict(given))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"model.path={settings.path}: its quantization_config: {error}") from error
        if hasattr(known, "dequantize"):  # fp8, mxfp4, compressed-tensors: while the file is read
            known.dequantize = True
            base = base._replace(head={**base.head, "quantization_config": known})
    read = load_quantised(base, tokenizer)
    model: Any = read.model
    if getattr(model, "hf_quantizer", None) is not None or any(quantized_layers(model)):
        model = _in_plain_layers(model, settings)
    model._weight_conversions = None  # those of the scheme cannot be undone when the model is saved
    model.requires_grad_(False)
    return Loaded(model.to(torch.float32).eval(), read.new_modules)


def load_quantised(base: Base, tokenizer: Any) -> Loaded:
    """Load the model with its quantised layers. ValueError where their package is missing.

    Codes that are stored are read in float32; others are made of the weights as the settings' dtype has them.
    """
    settings = base.model if base.model.quantization else replace(base.model, dtype="float32")
    return load_model(settings, base.auto_class, base.head, tokenizer, seed=0)


def _in_plain_layers(model: Any, settings: Model) -> Any:
    layers = list(quantized_layers(model))
    for name, host in layers:
        put(model, name, _plain(host))
    for module in model.modules():  # an embedding of torchao's
        for name, parameter in list(module.named_parameters(recurse=False)):
            if decodable(parameter):
                setattr(module, name, nn.Parameter(parameter.dequantize(), requires_grad=False))
    if not layers:
        with contextlib.suppress(NotImplementedError):
            return model.dequantize(dtype=torch.float32)
    if strange := [
        type(m) for m in _linear(model) if not m.__module__.startswith(("torch.", "transformers.models."))
    ]:
        raise ValueError(
            f"model.path={settings.path} cannot be dequantised here (its {strange[0].__name__} layers are of "
            f"{scheme_of(settings)}); use a plain copy of it"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


def _plain(host: LayerHost) -> nn.Linear:
    """A linear layer with the values of the codes, and the layer's own bias."""
    (O, I), bias = host.shape, host.own_bias
    layer = nn.Linear(I, O, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(host.matrix())
    layer.bias = None if bias is None else nn.Parameter(bias.detach())  # type: ignore[assignment]
    if host.coder is not None:  # an adapter may bring codes of its own
        layer.rounding = host.coder.rounding
    return layer


def _linear(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "in_features") and hasattr(m, "out_features")]


__all__ = ["load_dequantised", "load_quantised", "scheme_of"]
