"""Embeddings in PEFT's files: copies that trained apart, and those of a vocabulary that was resized."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.module_names import unwrapped
from lora_zoo.injection.tied_weights import names_by_parameter
from lora_zoo.injection.wrappers import LayerWrapper


def embeddings_of(model: nn.Module) -> set[str]:
    """The names of the input and output embeddings of a model of transformers'."""
    found = {id(layer.layer if isinstance(layer, LayerWrapper) else layer) for layer in _embeddings(model)}
    return {name for name, module in named_base_modules(model) if id(module) in found}


def _embeddings(model: nn.Module) -> Iterator[nn.Module]:
    for way in ("get_input_embeddings", "get_output_embeddings"):
        with contextlib.suppress(NotImplementedError, AttributeError):
            layer = getattr(unwrapped(model), way)()
            if isinstance(layer, nn.Module):
                yield unwrapped(layer)


def with_tied(model: nn.Module, name: str, tensor: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensor` under `name`, and under each name that is tied to it and not `given` in the file."""
    group = next(names for names in names_by_parameter(model).values() if name in names)
    return {other: tensor for other in group if other == name or other not in given}


def tied_once(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found` without the copies that tied parameters have of one value: the first name stands for all."""
    kept = dict(found)
    for group in names_by_parameter(model).values():
        own = [name for name in group if name in found]
        if len(own) > 1 and all(torch.equal(found[own[0]], found[other]) for other in own):
            for other in own[1:]:
                del kept[other]
    return kept
