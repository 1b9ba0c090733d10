"""Columns of a frame of runs: the settings among them, those that vary, and their values as text."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lora_zoo.runs.provenance import changes_results

SEEDS = ("seed", "data_seed")
_OWN = (
    *("model", "task", "variant", "rank", "alpha", "init", "lora_dropout", "target_modules", "layers"),
    *("view", "budget", "lr", "task_lr", "weight_decay", "batch_size", "steps"),
)
_CONFIG = "config."
_RUNS = (f"{_CONFIG}prior", f"{_CONFIG}start_from")
_OF_SEED = (f"{_CONFIG}variant.", *_RUNS)
_NOT_SETTINGS = ("experiment", *SEEDS)


def settings(frame: pd.DataFrame) -> list[str]:
    """The columns that hold what a person can set and that can change a result; the seeds are none.

    Nor is a variant's own key that is the run's seed (VeRA's projection_prng_key), or the runs that one goes
    on from, where they differ in the seed's number alone (`prior: [style-s${seed}]`).
    """
    keys = [c.removeprefix(_CONFIG) for c in frame if str(c).startswith(_CONFIG)]
    kept = [k for k in keys if k.partition(".")[0] not in _NOT_SETTINGS and changes_results(k)]
    found = [
        *(_CONFIG + k for k in kept),
        *(c for c in frame if str(c).startswith("variant.hyperparameters.")),
    ]
    return [*(c for c in _OWN if c in frame), *(c for c in found if not _follows_the_seed(frame, c))]


def _follows_the_seed(frame: pd.DataFrame, column: str) -> bool:
    if "seed" not in frame or not column.startswith(("variant.", *_OF_SEED)):
        return False
    values, seeds = frame[column].to_numpy(dtype=object), frame["seed"].to_numpy(dtype=object)
    if column in _RUNS:
        given = [(str(plain(value)), plain(seed)) for value, seed in zip(values, seeds, strict=True)]
        return len({re.sub(rf"(?<!\d){seed}(?!\d)", "{seed}", text) for text, seed in given}) == 1
    known = np.flatnonzero(pd.notna(values))
    return len(known) > 0 and all(plain(values[row]) == plain(seeds[row]) for row in known)


def varying(frame: pd.DataFrame, among: Iterable[str] | None = None) -> list[str]:
    """The settings (`among` these) in which the runs differ; of columns that split them alike, the first."""
    found: dict[tuple[int, ...], str] = {}
    for column in settings(frame) if among is None else among:
        told = _texts_of(frame[column])
        if len(numbers := {text: number for number, text in enumerate(dict.fromkeys(told))}) > 1:
            found.setdefault(tuple(map(numbers.__getitem__, told)), column)
    return list(found.values())


def texts(frame: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
    """The values of `columns` in one text a row: equal where all values are, whatever their types."""
    parts = [_texts_of(frame[column]) for column in columns]
    joined = ["\x1f".join(row) for row in zip(*parts, strict=True)] if parts else [""] * len(frame)
    return pd.Series(joined, index=frame.index, dtype=object)


_ALIKE = frozenset((str, int, float, bool))
"""Types whose equal values have one text."""
_SINGLE = [{kind} for kind in _ALIKE]


def _texts_of(column: pd.Series) -> Sequence[str]:
    """The text of each value; of values that are alike it is made once."""
    known: dict[Any, str] = {}
    found, every = [], column.tolist()
    if every and {*map(type, every)} in _SINGLE and every.count(every[0]) == len(every):
        return [repr(plain(every[0]))] * len(every)
    for value in every:
        if value is None or (type(value) is float and math.isnan(value)):
            found.append("None")
            continue
        key = (type(value), value)
        text = known.get(key) if key[0] in _ALIKE else repr(plain(value))
        if text is None:
            text = known[key] = repr(plain(value))
        found.append(text)
    return found


def replicates(frame: pd.DataFrame) -> pd.Series:
    """The label of a run within its cell: the seed, or "seed/data_seed" where one seed has several."""
    seeds = frame["seed"].map(plain)
    if "data_seed" not in frame or frame.groupby("seed")["data_seed"].nunique().max() <= 1:
        return seeds
    return seeds.map(str) + "/" + frame["data_seed"].map(format_value)


def text_column(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of texts; "" where it or a value is missing."""
    if column not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame[column].fillna("").astype(str)


def plain(value: Any) -> Any:
    """A cell of a frame as a value of Python; None for what is missing, 8 for 8.0."""
    if isinstance(value, (list, tuple, dict)):
        return str(value)
    if pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def format_value(value: Any) -> str:
    """A value for people: six digits, "-" for what is missing."""
    value = plain(value)
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def format_key(key: Mapping[str, Any]) -> str:
    """`variant=dora rank=8`."""
    return " ".join(f"{axis}={format_value(value)}" for axis, value in key.items()) or "all runs"


def join_names(names: Sequence[Any], most: int = 6) -> str:
    """`a, b and 3 more`."""
    first = ", ".join(map(str, names[:most]))
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
