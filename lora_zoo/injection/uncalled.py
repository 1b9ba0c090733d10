"""Modules that an adapter would miss: one under two names, and one that only holds a weight."""

import inspect
from collections.abc import Collection, Iterable

from torch import nn

from lora_zoo.injection.base_model import base_parameters, named_base_modules
from lora_zoo.injection.module_names import unwrapped
from lora_zoo.injection.tied_weights import names_by_parameter
from lora_zoo.injection.wrappers import LayerWrapper

_ACCESS = {"__init__", "_init_weights", "get_input_embeddings", "set_input_embeddings"}
_ACCESS |= {"_tie_weights", "tie_weights", "get_output_embeddings", "set_output_embeddings"}
"""Methods that name a module without calling it."""


def check_called(model: nn.Module, adapted: Iterable[str], fully_trained: Collection[str]) -> None:
    """Raise ValueError for a module of `adapted`, or a parameter that trains, which the pass misses."""
    places, names, every = _places(model), names_by_parameter(model), base_parameters(model)
    modules = dict(named_base_modules(model))
    for name in adapted:
        if len(same := places.get(id(modules.get(name)), [])) > 1:
            raise ValueError(
                f"{' and '.join(same)} are one module: an adapter would change {same[0]} alone, but its "
                "merge all of them; give the others copies of their own, or leave it out"
            )
        parameter = every.get(f"{name}.weight")
        _check_holder(modules, name, names.get(id(parameter), []))
    for name in fully_trained:
        tied = names[id(every[name])]
        if not any(other in fully_trained for other in tied if other != name):
            _check_holder(modules, name.rpartition(".")[0], tied)


def _places(model: nn.Module) -> dict[int, list[str]]:
    """The `id` of each module -> where it is a child, under the first name of its parent."""
    found: dict[int, list[str]] = {}
    for name, parent in named_base_modules(model):
        for child_name, child in parent._modules.items():
            if child is not None:
                plain = unwrapped(child)
                plain = plain.layer if isinstance(plain, LayerWrapper) else plain
                found.setdefault(id(plain), []).append(f"{name}.{child_name}" if name else child_name)
    return found


def _check_holder(modules: dict[str, nn.Module], name: str, tied: list[str]) -> None:
    """ValueError for an embedding that others share and that its parent never calls (T5's `shared`)."""
    owners = [n.rpartition(".")[0] for n in tied if n != f"{name}.weight"]
    embeddings = [n for n in owners if isinstance(modules.get(n), nn.Embedding)]
    around, _, child = name.rpartition(".")
    if embeddings and isinstance(modules.get(name), nn.Embedding) and not _calls(modules[around], child):
        raise ValueError(
            f"{name} holds the weight of {', '.join(embeddings)}, and no pass calls it: training it would "
            f"change nothing; name {embeddings[0]} instead"
        )


def _calls(parent: nn.Module, child: str) -> bool:
    """True if a method of `parent` beside the usual accessors names `child`."""
    for cls in type(parent).__mro__:
        for name, method in vars(cls).items():
            code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            if code is not None and child in code.co_names and name not in _ACCESS:
                return True
    return False
