"""Hooks of routed variants: a learning rate of their own for routers."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lora_zoo.core.hooks import AdapterHooks, Groups, split


class RouterRate(AdapterHooks):
    """The parameters that an adapter's class names in `routers` learn at λ times the others' rate."""

    def __init__(self, adapters: Mapping[str, Any], *, router_lr_ratio: float = 1.0) -> None:
        """ValueError for a λ that is not above 0."""
        super().__init__(adapters)
        if not router_lr_ratio > 0:
            raise ValueError(f"router_lr_ratio must be above 0; got {router_lr_ratio}")
        self.router_lr_ratio = router_lr_ratio

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        routers = {f".{name}" for adapter in self.adapters.values() for name in adapter.routers}
        own = {"lr": lr * self.router_lr_ratio}
        return split(named, tuple(sorted(routers)), own, lr=lr, weight_decay=weight_decay)
