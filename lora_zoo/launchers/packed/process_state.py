"""State that a process has once and each of several jobs must have for itself.

Random streams, loggers, warnings, W&B's current run, Hydra's configuration, accelerate's, autocast's.
"""

import logging
import os
import random
import sys
import warnings
from typing import Any

import numpy
import torch
import wandb
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.hydra_config import HydraConfig

_ROOT = logging.getLogger()
_ATTRIBUTES: tuple[tuple[Any, str], ...] = (
    (sys, "argv"),
    (_ROOT, "handlers"),
    (logging.getLogger("lora_zoo"), "handlers"),
    (logging, "raiseExceptions"),
    (logging, "_warnings_showwarning"),
    (warnings, "filters"),
    (warnings, "showwarning"),
    (warnings, "_showwarnmsg_impl"),
    *((wandb, name) for name in ("run", "config", "log", "summary", "define_metric", "watch")),
)
_ACCELERATE: tuple[Any, ...] = (GradientState, AcceleratorState, PartialState)
_VARIABLES = ("WANDB_SILENT", "WANDB_LOG_MODEL", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")  # of an open tracker


class ProcessState:
    """The state of one job while another one runs: taken when made, put in place by `install`."""

    def __init__(self) -> None:
        self.attributes = [getattr(owner, name) for owner, name in _ATTRIBUTES]
        self.level = _ROOT.level
        self.environment = {key: os.environ.get(key) for key in _VARIABLES}
        self.hydra = HydraConfig.instance().cfg
        self.accelerate = [dict(cls._shared_state) for cls in _ACCELERATE]
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self.random = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        self.autocast = _Autocast()

    def install(self) -> None:
        for (owner, name), value in zip(_ATTRIBUTES, self.attributes, strict=True):
            setattr(owner, name, _own(value))
        warnings._filters_mutated()  # type: ignore[attr-defined]
        if _ROOT.level != self.level:
            _ROOT.setLevel(self.level)
        for key in _VARIABLES:
            os.environ.pop(key, None)
        os.environ.update({key: value for key, value in self.environment.items() if value is not None})
        HydraConfig.instance().cfg = self.hydra
        for cls, state in zip(_ACCELERATE, self.accelerate, strict=True):
            cls._shared_state.clear()
            cls._shared_state.update({key: _own(value) for key, value in state.items()})
        python, array, cpu = self.random
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        self.autocast.install()


def _own(value: Any) -> Any:
    """Copy a list: several jobs begin with one state, and each appends for itself."""
    return value.copy() if isinstance(value, list) else value


class _Autocast:
    """Autocast's depth and cache; for each device if it is on, and its dtype."""

    def __init__(self) -> None:
        self.depth, self.caches = _depth(), torch.is_autocast_cache_enabled()
        devices = [d for d in ("cpu", "cuda") if torch.amp.is_autocast_available(d)]
        self.devices = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]

    def install(self) -> None:
        depth = _depth()
        for _ in range(depth, self.depth):
            torch.autocast_increment_nesting()
        for _ in range(self.depth, depth):
            torch.autocast_decrement_nesting()
        torch.set_autocast_cache_enabled(self.caches)
        torch.clear_autocast_cache()  # another job's casts would be stale, or without a graph
        for device, enabled, dtype in self.devices:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


def _depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()
