"""What a process has once and each of several jobs must have for itself: put in place while the job runs.

Random streams, loggers, warnings, W&B's current run, Hydra's configuration, accelerate's, autocast's.
"""

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.hydra_config import HydraConfig

_ROOT, _OURS = logging.getLogger(), logging.getLogger("lora_zoo")
_GLOBALS: tuple[tuple[Any, str], ...] = (
    (sys, "argv"),
    (_ROOT, "handlers"),
    (_OURS, "handlers"),
    (logging, "raiseExceptions"),
    (logging, "_warnings_showwarning"),
    (warnings, "filters"),
    (warnings, "showwarning"),
    (warnings, "_showwarnmsg_impl"),
)
_OF_ACCELERATE: tuple[Any, ...] = (GradientState, AcceleratorState, PartialState)
_VARIABLES = ("WANDB_SILENT", "WANDB_LOG_MODEL", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")  # an open mirror's
_OF_WANDB = ("run", "config", "log", "summary", "define_metric", "watch")


class _Part(NamedTuple):
    """One kind of state: how it is taken, and how what was taken is put back."""

    take: Callable[[], Any]
    put: Callable[[Any], None]


class ProcessState:
    """The state of one job while another one runs."""

    def __init__(self) -> None:
        """Take the state that is in place now."""
        self.taken = [part.take() for part in _PARTS]

    def install(self) -> None:
        for part, state in zip(_PARTS, self.taken, strict=True):
            part.put(state)


def _globals() -> list[Any]:
    found = [getattr(owner, name) for owner, name in _GLOBALS]
    return [_ROOT.level, *found]


def _set_globals(values: list[Any]) -> None:
    level, *others = values
    if _ROOT.level != level:
        _ROOT.setLevel(level)
    for (owner, name), value in zip(_GLOBALS, others, strict=True):
        setattr(owner, name, _own(value))
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _environment() -> list[str | None]:
    return [os.environ.get(key) for key in _VARIABLES]


def _set_environment(values: list[str | None]) -> None:
    for key, value in zip(_VARIABLES, values, strict=True):
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def _wandb() -> list[Any]:
    import wandb  # also where no job has yet: its state before any run is what the next job begins with

    return [getattr(wandb, name) for name in _OF_WANDB]


def _set_wandb(values: list[Any]) -> None:
    import wandb

    for name, value in zip(_OF_WANDB, values, strict=True):
        setattr(wandb, name, value)


def _streams() -> list[Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return [random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda]


def _set_streams(states: list[Any]) -> None:
    python, array, cpu, cuda = states
    random.setstate(python)
    numpy.random.set_state(array)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


def _accelerate() -> list[dict[str, Any]]:
    return [dict(cls._shared_state) for cls in _OF_ACCELERATE]


def _set_accelerate(states: list[dict[str, Any]]) -> None:
    for cls, state in zip(_OF_ACCELERATE, states, strict=True):
        cls._shared_state.clear()
        cls._shared_state.update({key: _own(value) for key, value in state.items()})


def _own(value: Any) -> Any:
    """Several jobs begin with one state; what one of them appends to a list is its own business."""
    return value.copy() if isinstance(value, list) else value


def _autocast() -> tuple[int, bool, list[tuple[str, bool, torch.dtype]]]:
    """How deep within autocast we are, whether it caches; for each device whether it is on, and its dtype."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    devices = [d for d in ("cpu", "cuda") if torch.amp.is_autocast_available(d)]
    states = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    return depth, torch.is_autocast_cache_enabled(), states


def _set_autocast(state: tuple[int, bool, list[tuple[str, bool, torch.dtype]]]) -> None:
    wanted, caches, devices = state
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    for _ in range(depth, wanted):
        torch.autocast_increment_nesting()
    for _ in range(wanted, depth):
        torch.autocast_decrement_nesting()
    torch.set_autocast_cache_enabled(caches)
    torch.clear_autocast_cache()  # what one job has cast would be stale, or without a graph, for another
    for device, enabled, dtype in devices:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _set_hydra(config: Any) -> None:
    HydraConfig.instance().cfg = config


_PARTS = (
    _Part(_globals, _set_globals),
    _Part(_environment, _set_environment),
    _Part(_wandb, _set_wandb),
    _Part(_streams, _set_streams),
    _Part(_accelerate, _set_accelerate),
    _Part(_autocast, _set_autocast),
    _Part(lambda: HydraConfig.instance().cfg, _set_hydra),
)
