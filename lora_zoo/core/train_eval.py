"""Evaluation and training mode for a while, and passes without gradients."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lora_zoo.core.processes import current


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside, all modules train or evaluate; afterwards each has the mode that it had before."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Inside, no gradients are computed. What processes gather in these passes can serve in training."""
    with torch.no_grad() if current().divided else torch.inference_mode():
        yield


__all__ = ["in_mode", "without_gradients"]
