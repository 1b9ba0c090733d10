"""Kinds of parameters that `modules_to_save` names alike on every architecture: all-norms, all-embeddings."""

import re
from collections.abc import Callable

from torch import nn

from lora_zoo.injection.base_model import base_parameters, named_base_modules, own_parameters
from lora_zoo.injection.roles import role_of
from lora_zoo.injection.tied_weights import names_by_parameter

NORM = re.compile(r"(Layer|RMS)Norm")
"""Found in the class names of layer norms: torch's, and those of the models in transformers."""


def norm_names(model: nn.Module) -> list[str]:
    """The names of gains and biases of all layer norms: RMS norms, final ones, of queries and keys too."""
    norms = [(name, m) for name, m in named_base_modules(model) if NORM.search(type(m).__name__)]
    return [f"{name}.{own}" if name else own for name, m in norms for own in own_parameters(m)]


def embedding_names(model: nn.Module) -> list[str]:
    """The names of the embeddings of tokens, and of what is tied to them (a head)."""
    every, names = base_parameters(model), names_by_parameter(model)
    found = [name for name in every if role_of(name.rpartition(".")[0]) == "embed"]
    return list(dict.fromkeys(other for name in found for other in names[id(every[name])]))


KINDS: dict[str, Callable[[nn.Module], list[str]]] = {
    "all-norms": norm_names,
    "all-embeddings": embedding_names,
}
