"""A path: one way to take a training step; and the settings that every path is measured with."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lora_zoo.adapters.adapter import Adapter
from lora_zoo.adapters.injection import Injection, inject
from lora_zoo.adapters.registry import find_variant, hyperparameters
from lora_zoo.adapters.targets import Layers

RANK = 8
TOTAL, FIRST = 10_000, 11
"""A run's optimiser steps, and the one that is measured first: AdaLoRA's budget shrinks from step 10 on."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "adalora": {"tinit": FIRST - 1, "tfinal": 10},
    "vera": {"rank": 256, "projection": "peft"},
}
"""What a variant is measured with, where that is neither its default nor `RANK`."""


@dataclass
class StepPath:
    """A model that can be stepped. `loss` includes the regulariser, `hooks` follow the backward pass."""

    model: nn.Module
    loss: Callable[[], Tensor]
    hooks: Callable[[], object] = bool
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    groups: Callable[[], list[dict[str, Any]]] = list
    parameters: list[nn.Parameter] = field(default_factory=list)

    def step(self) -> None:
        with self.context():
            self.loss().backward()
            self.hooks()
        for parameter in self.parameters:
            parameter.grad = None

    def prepare(self) -> Callable[[], None]:
        """The step, as a stopwatch takes it: nothing is to be made ready."""
        return self.step


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its parameters, which no path writes to."""
    copied = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    copied.enable_input_require_grads()  # type: ignore[operator]
    return copied


def adapts_matrices(variant: str) -> bool:
    return issubclass(find_variant(variant), Adapter)


def hyper_of(variant: str, **wanted: Any) -> dict[str, Any]:
    """The hyperparameters that `variant` is measured with; what it does not know is left out."""
    known = hyperparameters(find_variant(variant))
    every = {"rank": RANK} | dict(SETTINGS.get(variant, {})) | wanted
    return {key: value for key, value in every.items() if key in known}


def inject_linear(
    model: nn.Module, variant: str, *, layers: Layers | None = None, **wanted: Any
) -> Injection:
    """`variant` on all linear layers of `model`, with the settings that it is measured with."""
    return inject(model, variant, target_modules="all-linear", layers=layers, **hyper_of(variant, **wanted))
