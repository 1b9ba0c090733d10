"""Dequantise a model: plain layers with the values of its codes.

An adapter of a quantised base corrects those values, not the ones from before the quantisation.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.quantizers import AutoQuantizationConfig

from lora_zoo.config.schema import Model
from lora_zoo.injection.inject import Injection
from lora_zoo.models.base import Base
from lora_zoo.models.loading import Loaded, load_model, source


def scheme_of(settings: Model) -> str | None:
    """The quantisation method in the base's config.json; None for an ordinary model."""
    return (_configuration(settings) or {}).get("quant_method")


def load_dequantised(base: Base, tokenizer: Any) -> Loaded:
    """The quantised base in plain layers of float32; without the scheme in its configuration.

    Raises ValueError where the scheme's package is missing, or nothing here turns its codes into numbers.
    """
    settings = base.model
    given = _configuration(settings)
    assert given is not None, "not quantised"
    try:
        known = AutoQuantizationConfig.from_dict(dict(given))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"model.path={settings.path}: its quantization_config: {error}") from error
    if hasattr(known, "dequantize"):  # fp8, mxfp4, compressed-tensors: while the file is read
        known.dequantize = True
        base = base._replace(head={**base.head, "quantization_config": known})
    read = load_quantised(base, tokenizer)
    model: Any = read.model
    # Before any forward pass: bitsandbytes packs its codes anew in the first one, and then misreads them.
    if getattr(model, "hf_quantizer", None) is not None:
        model = _in_plain_layers(model, settings)
    model._weight_conversions = None  # those of the scheme cannot be undone when the model is saved
    model.requires_grad_(False)
    return Loaded(model.to(torch.float32).eval(), read.new_modules)


def load_quantised(base: Base, tokenizer: Any) -> Loaded:
    """Load the model with its quantised layers. ValueError where their package is missing."""
    exact = replace(base.model, dtype="float32")
    return load_model(exact, base.auto_class, base.head, tokenizer, seed=0)


def _configuration(settings: Model) -> dict[str, Any] | None:
    given = {"revision": settings.revision} if settings.revision else {}
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(source(settings), **given)
    except (OSError, ValueError):
        return None  # load_model says why
    return config.get("quantization_config")


def _in_plain_layers(model: Any, settings: Model) -> Any:
    try:
        return model.dequantize(dtype=torch.float32)
    except NotImplementedError:
        pass
    for module in model.modules():  # torchao keeps nn.Linear, with a tensor that knows its values
        for name, parameter in list(module.named_parameters(recurse=False)):
            if type(parameter) is not nn.Parameter and hasattr(parameter, "dequantize"):
                setattr(module, name, nn.Parameter(parameter.dequantize(), requires_grad=False))
    if strange := [
        type(m) for m in _linear(model) if not m.__module__.startswith(("torch.", "transformers.models."))
    ]:
        raise ValueError(
            f"model.path={settings.path} cannot be dequantised here (its {strange[0].__name__} layers are of "
            f"{scheme_of(settings)}); use a plain copy of it"
        )
    model.hf_quantizer.remove_quantization_config(model)
    return model


def _linear(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "in_features") and hasattr(m, "out_features")]


@contextlib.contextmanager
def with_adapter(quantised: nn.Module, injection: Injection) -> Iterator[None]:
    """Inside, each layer of `quantised` adds the adapter's update to its output.

    LookupError where an update belongs to no linear layer, biases change as well, or there are priors.
    """
    if injection.prior:
        raise LookupError(f"it was trained on {', '.join(injection.prior)}, which those layers lack")
    if injection.variant.changes_bias:
        raise LookupError(f"{injection.variant.name} changes biases as well")
    modules, handles = dict(quantised.named_modules()), []
    parameters = dict(quantised.named_parameters())
    try:
        with torch.no_grad():
            for name in injection.fully_trained:
                parameters[name].copy_(injection.trained[name])
        for name, _, dW_OI in injection:
            if f"{name}.weight" not in injection.fully_trained:
                layer = modules[name]
                if layer not in _linear(quantised):
                    raise LookupError(f"{name} is no linear layer")
                handles.append(layer.register_forward_hook(_adding(dW_OI)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(dW_OI: Tensor) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + linear(inputs[0].to(dW_OI.dtype), dW_OI).to(output.dtype)

    return hook


__all__ = ["load_dequantised", "load_quantised", "scheme_of", "with_adapter"]
