"""Columns of a frame of runs by the keys of the command line, and those in which the runs differ."""

import contextlib
import difflib
from collections.abc import Iterable

import pandas as pd

from lora_zoo.runs.frame import PATHS, SETTINGS
from lora_zoo.runs.provenance import changes_results

_KEYS = {"trainer.weight_decay": "weight_decay"} | {
    key: column
    for column, path in PATHS.items()
    if (key := path.removeprefix("config.")) != path and column in SETTINGS
}
_RATES = ("lr", "task_lr")
# What the axes of a comparison are looked for in first: what follows from an earlier one is none.
_AXES = (
    *("task", "model", "variant", "program", "target_modules", "layers", "budget", "rank", "alpha", "init"),
    *("view", "lora_dropout", "task_lr", "lr", "weight_decay", "batch_size", "steps"),
)


def column(frame: pd.DataFrame, axis: str) -> str:
    """The column of an axis, given by its name or its key on the command line (`task.lr`).

    ValueError with the nearest names where there is none.
    """
    key = axis.lstrip("+")
    own = f"variant.hyperparameters.{key.removeprefix('variant.')}"
    for name in (_KEYS.get(key, key), own, f"config.{key}"):
        if name in frame.columns:
            return name
    near = difflib.get_close_matches(axis, [*frame.columns], n=5, cutoff=0.4)
    meant = f" Near are: {', '.join(near)}." if near else ""
    raise ValueError(f"the runs have no axis {axis!r}.{meant} Give a column of the frame or a key of the run")


def axes(frame: pd.DataFrame) -> list[str]:
    """The columns of settings in which the runs differ, but seeds and what follows from others.

    Finished runs alone count, where there are any.
    """
    done = frame[frame["state"] == "done"] if (frame["state"] == "done").any() else frame
    chosen: list[str] = []
    left_out = searched(done)
    known = [name for name in _AXES if name in frame]  # an older one lacks some
    for name in (name for name in (*known, *_further(frame.columns)) if name not in left_out):
        values = done[name].astype(str)
        groups = values.groupby([done[c].astype(str) for c in chosen]) if chosen else values
        if (groups.nunique().max() if chosen else values.nunique()) > 1:
            chosen.append(name)
    return chosen


def searched(frame: pd.DataFrame) -> list[str]:
    """The columns of settings that were found for the cell of each run, and are no axes.

    They are learning rates (lr=auto), or the keys of a search (hydra/sweeper=optuna).
    """
    found: list[str] = []
    for plan in ("config.rates.key", "config.search.keys"):
        if plan in frame and len(frame) and frame[plan].notna().all():
            keys = {key for held in frame[plan].unique() for key in held.split(", ")}
            with contextlib.suppress(ValueError):  # a key of some variants that no run here has
                found += [column(frame, key) for key in sorted(keys)]
    return [*found, *_RATES] if {*found} & {*_RATES} else found


def _further(columns: Iterable[str]) -> list[str]:
    """The settings without a column of their own that can change a result."""
    ours = [name for name in columns if name.startswith(("config.", "variant.hyperparameters."))]
    keys = {name: name.removeprefix("config.") for name in ours}
    return [name for name, key in keys.items() if changes_results(key) and key not in ("seed", "data_seed")]
