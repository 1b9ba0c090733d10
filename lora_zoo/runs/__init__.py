"""Runs: identity, folder, record, tracking in Weights & Biases, and all of them as one pandas DataFrame.

from lora_zoo import runs
frame = runs.load("runs")                    # a row a run; its columns: frame.py

The names below are imported on first use: a run writes its record without pandas.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "load": "frame",
    "metric_facts": "directions",
    "column": "keys",
    "axes": "keys",
    "histories": "curves",
    "updates": "curves",
    "examples": "curves",
    "deltas": "curves",
    "archive": "archives",
    "load_wandb": "from_wandb",
}
__all__ = ["archive", "axes", "column", "deltas", "examples", "histories", "load", "load_wandb"]
__all__ += ["metric_facts", "updates"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_zoo.runs' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
