"""Hooks of variants whose tensors do not start at zero, or are no matrices: weight decay leaves them alone."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lora_zoo.core.hooks import AdapterHooks


class Undecayed(AdapterHooks):
    """Decay pulls to 0: gains that start at 1 would be lost, and biases do not decay (transformers' Trainer)."""

    def param_groups(
        self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        return super().param_groups(named, lr=lr, weight_decay=0.0)
