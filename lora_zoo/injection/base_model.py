"""The base model: modules and parameters under their original names, whatever adapters are injected."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_zoo.injection.module_names import base_name, unwrapped
from lora_zoo.injection.parametrized import ParametrizedWeight
from lora_zoo.injection.wrappers import LayerWrapper

T = TypeVar("T")
BESIDE = "_lora_zoo_"
"""How the names of modules begin that an adapter puts beside the base's own, a soft prompt for example."""
_NOT_THE_BASES = (BESIDE, "parametrizations")


def named_base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the base's modules as `named_modules()` does: each layer once, under its original name."""
    seen: set[int] = set()
    left = [("", model)]
    while left:
        name, module = left.pop()
        plain = unwrapped(module)
        plain = plain.layer if isinstance(plain, LayerWrapper) else plain
        if id(plain) in seen:
            continue
        seen.add(id(plain))
        yield name, plain
        left += [
            (f"{name}.{child_name}" if name else child_name, child)
            for child_name, child in reversed(plain._modules.items())
            if child is not None
            and not child_name.startswith(_NOT_THE_BASES)
            and not isinstance(child, parametrize.ParametrizationList)
        ]


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that `module` itself holds, parametrised ones under their own names."""
    found = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    if "parametrizations" not in module._modules:
        return found
    for name, by in getattr(module, "parametrizations", {}).items():
        if isinstance(by[-1], ParametrizedWeight):
            found[name] = by.original
        else:  # another library's, weight_norm for example
            found |= {f"parametrizations.{name}.{own}": tensor for own, tensor in by.named_parameters()}
    return found


def own_names(model: nn.Module, named: Mapping[str, T]) -> dict[str, T]:
    """`named` under the base model's own names, whatever wrapped the model that a file is from."""
    top = [name for name, _ in unwrapped(model).named_children()]
    return {base_name(name, top): value for name, value in named.items()}


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of the base model; tied ones appear under each of their names."""
    return {
        f"{name}.{own}" if name else own: tensor
        for name, module in named_base_modules(model)
        for own, tensor in own_parameters(module).items()
    }


def base_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every buffer of the base model that its checkpoint would hold (running means, counts)."""
    return {
        f"{name}.{own}" if name else own: tensor
        for name, module in named_base_modules(model)
        for own, tensor in module.named_buffers(recurse=False)
        if own not in module._non_persistent_buffers_set
    }
