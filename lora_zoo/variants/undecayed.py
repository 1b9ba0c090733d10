"""Hooks of gains, which start at 1, and of biases: weight decay, which pulls to 0, leaves them alone."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lora_zoo.core.hooks import AdapterHooks


class Undecayed(AdapterHooks):
    """Nothing decays, as transformers' Trainer decays no bias."""

    def param_groups(
        self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        return super().param_groups(named, lr=lr, weight_decay=0.0)
