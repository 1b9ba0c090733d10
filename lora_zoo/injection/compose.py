"""Composition of several named adapters on one model."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn

from lora_zoo.core.adapter import Adapter, Variant
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.injection.matrices import TargetMatrix
from lora_zoo.injection.tied_weights import names_by_parameter, warn_if_tied
from lora_zoo.injection.wrappers import AdapterWrapper


class NamedAdapter(Protocol):
    """The attributes of an adapter that the set uses (`injection.inject.Injection`)."""

    name: str
    variant: type[Variant]
    counter: ForwardCounter
    adapters: dict[str, Adapter]
    matrices: dict[str, TargetMatrix]
    fully_trained: list[str]
    trained: dict[str, nn.Parameter]
    originals: dict[str, nn.Parameter]

    def forget(self) -> None: ...


def check_compatible(adapters: Sequence[NamedAdapter]) -> None:
    """Raise ValueError where two adapters would train, or train and adapt, the same parameter."""
    owner: dict[str, str] = {}
    for injection in adapters:
        for name in injection.fully_trained:
            if name in owner:
                raise ValueError(f"{owner[name]!r} and {injection.name!r} both train {name} in full")
            owner[name] = injection.name
    for injection in adapters:
        for matrix in injection.matrices.values():
            if held := next(filter(matrix.holds, owner), None):
                raise ValueError(f"{owner[held]!r} trains {held} in full, {injection.name!r} adapts it")


def merge_wrappers(
    model: nn.Module, wrappers: Mapping[str, AdapterWrapper], originals: dict[str, nn.Parameter]
) -> None:
    """Replace each wrapper by its plain layer with the effective weight; `originals` keeps the parameters."""
    names = names_by_parameter(model)
    for key, wrapper in wrappers.items():
        original = originals[key] = wrapper.stored
        effective = wrapper.effective(original).detach() if wrapper.live() else original
        wrapper.uninstall(model)
        if effective is not original:
            warn_if_tied(key, original, names)
            wrapper.store(nn.Parameter(effective, requires_grad=False))
