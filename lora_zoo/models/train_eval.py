"""Context managers for evaluation and training mode that restore each module's mode."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    with _as_it_was(model):
        model.eval()
        yield


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    with _as_it_was(model):
        model.train()
        yield


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


__all__ = ["evaluating", "training"]
