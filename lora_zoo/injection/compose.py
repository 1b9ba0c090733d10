"""Several named adapters on one model: those that can be active together, and their merge."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, Variant
from lora_zoo.core.composition import Composition
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.injection.matrices import TargetMatrix
from lora_zoo.injection.tied_weights import names_by_parameter, warn_if_tied
from lora_zoo.injection.trained_buffers import TrainedBuffers
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
    prior: tuple[str, ...]
    hooks: AdapterHooks
    hyper: dict[str, Any]
    shared: nn.Module | None
    buffers: TrainedBuffers

    def forget(self) -> None: ...


class LayerParameters(NamedTuple):
    """The parameters of a layer, before a merge or after: `bias` is None where there is none within reach."""

    weight: nn.Parameter
    bias: nn.Parameter | None


def check_compatible(adapters: Sequence[NamedAdapter], composition: Composition) -> None:
    """Raise ValueError where two adapters would train, or train and adapt, the same parameter.

    And where `composition` is of weights that one does not have, or would change what one trains in full.
    """
    for injection in adapters:
        _check_composed(injection, composition)
    _check_alone([own.name for own in adapters if own.variant.virtual_tokens(own.hyper)])
    _check_matrices(adapters, composition)
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


def _check_alone(names: Sequence[str]) -> None:
    """Raise ValueError for two adapters with virtual tokens: which of them were first?"""
    if names[1:]:
        raise ValueError(f"{names[0]!r} and {names[1]!r} both put virtual tokens before the input; keep one")


def _check_matrices(adapters: Sequence[NamedAdapter], composition: Composition) -> None:
    """Raise ValueError where matrices are composed, and one adapts a whole of which another adapts a part."""
    if composition.of_outputs:
        return
    owner = {name: injection.name for injection in adapters for name in injection.matrices}
    for injection in adapters:
        for name, matrix in injection.matrices.items():
            if matrix.whole in owner:
                raise ValueError(
                    f"{composition.name} composes matrix by matrix, and {owner[matrix.whole]!r} adapts "
                    f"{matrix.whole}, of which {name} of {injection.name!r} is a part"
                )


def _check_composed(injection: NamedAdapter, composition: Composition) -> None:
    if not composition.of_outputs:
        injection.variant.require_weight(f"composed by {composition.name}")
    if injection.fully_trained and not composition.leaves(injection.name):
        trained = injection.fully_trained[0]
        raise ValueError(
            f"{composition.name} composes adapters, and {injection.name!r} trains {trained} in full"
        )


def merged_parameters(model: nn.Module, wrappers: Mapping[str, AdapterWrapper]) -> dict[str, LayerParameters]:
    """The weight and bias that each wrapper's plain layer holds once it is merged; the model stays as it is.

    ValueError for a layer that holds no merged weight.
    """
    for key, wrapper in wrappers.items():
        for host, _ in (entry for entries in wrapper.live.values() for entry in entries):
            if host.unmergeable:
                raise ValueError(f"{key} cannot be merged, a {host.kind}: {host.unmergeable}")
    names = names_by_parameter(model)
    merged = {}
    for key, wrapper in wrappers.items():
        weight, bias = wrapper.stored, wrapper.stored_bias
        new_weight = wrapper.effective(weight) if wrapper.live else weight
        new_bias = wrapper.effective_bias()
        for old, new in ((weight, new_weight), (bias, new_bias)):
            if old is not None and new is not old:
                warn_if_tied(key, old, names)
        merged[key] = LayerParameters(_frozen(new_weight), None if new_bias is None else _frozen(new_bias))
    return merged


def _frozen(tensor: Tensor) -> nn.Parameter:
    """`tensor` as a parameter that does not train; one that is a parameter stays itself."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), requires_grad=False)
