"""A guard on `save_pretrained`: the folder of an adapted model would load with random weights."""

from collections.abc import Callable
from typing import Any

from torch import nn

_NAME = "save_pretrained"


class SaveGuard:
    """`save_pretrained` of a model or one of its modules; refuses while `adapted` says what would be lost."""

    def __init__(self, module: Any, adapted: Callable[[], str]) -> None:
        self.module, self.adapted = module, adapted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if lost := self.adapted():
            raise ValueError(
                f"save_pretrained cannot write an adapted model: the folder would load {lost}; "
                "save_adapter(injection, folder) writes the adapter, injection.merge() before "
                "save_pretrained an ordinary model"
            )
        return getattr(type(self.module), _NAME)(self.module, *args, **kwargs)


def guard(model: nn.Module, adapted: Callable[[], str]) -> None:
    """Put the guard on every module that has a `save_pretrained`; Trainer's checkpoints call it too."""
    for module in model.modules():
        if hasattr(type(module), _NAME) and _NAME not in vars(module):
            vars(module)[_NAME] = SaveGuard(module, adapted)


def unguard(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(vars(module).get(_NAME), SaveGuard):
            del vars(module)[_NAME]
