"""The record of a run: its identity, its folder, its result, and the mirror of it in Weights & Biases.

from lora_zoo import results
runs = results.load("runs")                  # a pandas DataFrame, a row a run; its columns: frame.py

The names below are imported on first use: a run writes its record without pandas.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "load": "frame",
    "column": "frame",
    "axes": "frame",
    "histories": "curves",
    "updates": "curves",
    "examples": "curves",
    "deltas": "curves",
    "archive": "archives",
    "load_wandb": "from_wandb",
}
__all__ = ["archive", "axes", "column", "deltas", "examples", "histories", "load", "load_wandb", "updates"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_zoo.runs' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
