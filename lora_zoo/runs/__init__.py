"""Runs: identity, folder, record, tracking in Weights & Biases, and all of them as one pandas DataFrame.

from lora_zoo import runs
frame = runs.load("runs")                    # a row a run; its columns: frame.py

The names below are imported on first use: a run writes its record without pandas.
"""

from lora_zoo.core.lazy import lazy

_HOMES = {
    "load": "frame",
    "metric_facts": "directions",
    "column": "keys",
    "axes": "keys",
    "by_view": "views",
    "histories": "curves",
    "updates": "curves",
    "groups": "curves",
    "ranks": "curves",
    "routing": "curves",
    "merges": "retained",
    "examples": "curves",
    "deltas": "curves",
    "archive": "archives",
    "load_wandb": "from_wandb",
}
__all__ = ["archive", "axes", "by_view", "column", "deltas", "examples", "histories", "load", "load_wandb"]
__all__ += ["groups", "merges", "metric_facts", "ranks", "routing", "updates"]

__getattr__ = lazy(__name__, _HOMES)
