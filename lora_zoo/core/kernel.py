"""Fused kernels by name, and what each of them answers for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lora_zoo.core.dropout import Mask
from lora_zoo.core.host import LayerHost, Rows
from lora_zoo.core.registry import Registry


class Kernel(ABC):
    """An adapted layer's forward and backward pass in one piece, equal to its adapter's `forward`."""

    @abstractmethod
    def operands(self, adapter: Any) -> tuple[Any, ...]:
        """The tensors, or tuples of tensors, that the kernel takes from `adapter`."""

    @abstractmethod
    def refusal(self, x: Tensor, host: LayerHost, operands: tuple[Any, ...]) -> str:
        """The reason to use ordinary operations for this call; "" where the kernel serves."""

    @abstractmethod
    def run(self, x: Tensor, host: LayerHost, operands: tuple[Any, ...], mask: Mask | None) -> Tensor:
        """The layer's output (..., O) for x (..., I); the adapter's branch sees x through `mask`."""

    def lean(self, adapter: Any, x: Tensor, host: LayerHost) -> Tensor | None:
        """The same output where no gradients are recorded and nothing is dropped; None where `run` has to."""
        return None

    def of_parts(self, parts: Sequence[tuple[Rows, Any]], rows: int) -> tuple[Any, ...] | None:
        """The operands for a whole layer of so many rows, of which adapters have these; None without any."""
        return None


_KINDS = ("forward", "forward_pre", "backward", "backward_pre")
GLOBAL = tuple(getattr(nn.modules.module, f"_global_{kind}_hooks") for kind in _KINDS)
"""The tables in which torch keeps hooks that it runs for every module: looked at in each call of a layer."""


def hooked(module: nn.Module) -> bool:
    """True if a call of `module` runs hooks, its own or every module's."""
    return bool(
        any(GLOBAL)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


KERNELS: Registry[type[Kernel]] = Registry("kernel", "lora_zoo.kernels")
