"""The tensors of all adapters of an injection by name, those that they share once."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T", bound=Tensor)


def adapter_tensors(
    adapters: Mapping[str, nn.Module], shared: nn.Module | None, of: Callable[[nn.Module], Mapping[str, T]]
) -> dict[str, T]:
    """`matrix.tensor` of each adapter, then `shared.tensor` of the module that all share; `of` lists them."""
    common = {} if shared is None else of(shared)
    ids = {id(tensor) for tensor in common.values()}
    every = {f"{name}.{key}": t for name, adapter in adapters.items() for key, t in of(adapter).items()}
    own = {name: tensor for name, tensor in every.items() if id(tensor) not in ids}
    return own | {f"shared.{key}": tensor for key, tensor in common.items()}


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


def saved(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state, not detached."""
    return module.state_dict(keep_vars=True)
