"""Quantised base models: the codes that can be read, and those that stand in the way of an adapter."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.host import LayerHost
from lora_zoo.hosts.find import find_host
from lora_zoo.injection.base_model import base_parameters, named_base_modules


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, LayerHost]]:
    """Name and host of each quantised layer that can be read."""
    for name, module in named_base_modules(model):
        host = find_host(module)
        if host is not None and host.stores_codes:
            yield name, host


def refuse_unreadable(model: nn.Module) -> None:
    """Raise ValueError for a quantised model with codes that nothing here reads, or that stop gradients.

    A gradient has to pass through every layer, adapted or not.
    """
    layers = dict(quantized_layers(model))
    readable = {id(host.layer.weight) for host in layers.values()}
    foreign = (
        f"{name} is a {type(parameter).__name__} of {package}"
        for name, parameter in base_parameters(model).items()
        if (package := type(parameter).__module__.partition(".")[0]) != "torch"
        and id(parameter) not in readable
    )
    scheme: Any = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    method = [str(getattr(scheme.quant_method, "value", scheme.quant_method))] if scheme is not None else []
    if found := next(foreign, None) or ("" if layers else next(iter(method), "")):
        raise ValueError(
            f"the model is quantised ({found}) in a way that no layer type here reads: take it from before "
            "its quantisation, or a dequantised copy"
        )
    for name, host in {type(host.layer.weight): (name, host) for name, host in layers.items()}.values():
        try:
            learns = differentiable(host)
        except RuntimeError:
            host.matrix()  # which says what is wrong with its codes
            raise
        if not learns:
            raise ValueError(
                f"{name}, a {host.kind}, rounds its input and gives it no gradient, so that nothing before "
                "it learns: quantise the weights alone"
            )


def differentiable(host: LayerHost) -> bool:
    """True if the layer's output has a gradient by its input; so taken on the meta device."""
    if host.like.is_meta:
        return True
    with torch.enable_grad():
        x = host.like.new_zeros(1, host.shape[1]).requires_grad_()
        own: Any = next((p.dtype for p in host.layer.parameters() if p.is_floating_point()), x.dtype)
        y: Tensor = host.layer.forward(x.to(own))
    return y.requires_grad


def refuse_trained(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ValueError where a parameter that is to be trained in full holds codes."""
    codes = {f"{name}.weight" for name, _ in quantized_layers(model)}
    if name := next((name for name in names if name in codes), None):
        raise ValueError(
            f"{name} holds codes, which cannot train: adapt it instead, or take an unquantised base"
        )


__all__ = ["quantized_layers", "refuse_trained", "refuse_unreadable"]
