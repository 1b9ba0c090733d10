"""Which columns of a frame of runs are settings, which of them vary, and how a cell is called."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lora_zoo.core.errors import unknown
from lora_zoo.runs.provenance import changes_results

SEEDS = ("seed", "data_seed")
_OWN = (
    *("model", "task", "variant", "rank", "alpha", "init", "lora_dropout", "target_modules", "layers"),
    *("budget", "lr", "task_lr", "weight_decay", "batch_size", "steps"),
)
_CONFIG = "config."
_NOT_SETTINGS = ("experiment", *SEEDS)


def settings(frame: pd.DataFrame) -> list[str]:
    """The columns that hold what a person can set and that can change a result; the seeds are none.

    Nor is a variant's own key that is the run's seed (VeRA's projection_prng_key).
    """
    keys = [c.removeprefix(_CONFIG) for c in frame if str(c).startswith(_CONFIG)]
    kept = [k for k in keys if k.partition(".")[0] not in _NOT_SETTINGS and changes_results(k)]
    found = [
        *(_CONFIG + k for k in kept),
        *(c for c in frame if str(c).startswith("variant.hyperparameters.")),
    ]
    return [*(c for c in _OWN if c in frame), *(c for c in found if not _is_the_seed(frame, c))]


def _is_the_seed(frame: pd.DataFrame, column: str) -> bool:
    if "seed" not in frame or not column.startswith((f"{_CONFIG}variant.", "variant.")):
        return False
    known = frame[column].notna()
    return bool(known.any() and (frame[column][known].map(plain) == frame["seed"][known].map(plain)).all())


def varying(frame: pd.DataFrame) -> list[str]:
    """The settings in which the runs differ; of columns that split the runs alike, the first."""
    found: dict[tuple[int, ...], str] = {}
    for column in settings(frame):
        codes, values = pd.factorize(texts(frame, [column]))
        if len(values) > 1:
            found.setdefault(tuple(codes), column)
    return list(found.values())


def texts(frame: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
    """The values of `columns` in one text a row: equal where all values are, whatever their types."""
    parts = [frame[column].map(lambda value: repr(plain(value))) for column in columns]
    joined = ["\x1f".join(row) for row in zip(*parts, strict=True)] if parts else [""] * len(frame)
    return pd.Series(joined, index=frame.index, dtype=object)


def replicates(frame: pd.DataFrame) -> pd.Series:
    """What tells apart the runs of one cell: the seed, or "seed/data_seed" where one seed has several."""
    seeds = frame["seed"].map(plain)
    if "data_seed" not in frame or frame.groupby("seed")["data_seed"].nunique().max() <= 1:
        return seeds
    return seeds.map(str) + "/" + frame["data_seed"].map(said)


def column(frame: pd.DataFrame, axis: str) -> str:
    """The column of an axis, given by its name or by its key on the command line. ValueError else."""
    flat = axis.removeprefix("variant.")
    tries = (axis, axis.replace("task.lr", "task_lr"), f"variant.hyperparameters.{flat}", _CONFIG + axis)
    found = next((name for name in tries if name in frame), None)
    if found is None:
        raise ValueError(unknown("axis", axis, [*settings(frame), *SEEDS]))
    return found


def plain(value: Any) -> Any:
    """A cell of a frame as a value of Python; None for what is missing, 8 for 8.0."""
    if isinstance(value, (list, tuple, dict)):
        return str(value)
    if pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def said(value: Any) -> str:
    """A value for people: six digits, "-" for what is missing."""
    value = plain(value)
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def described(key: Mapping[str, Any]) -> str:
    """`variant=dora rank=8`."""
    return " ".join(f"{axis}={said(value)}" for axis, value in key.items()) or "all runs"


def listed(words: Sequence[Any], most: int = 6) -> str:
    """`a, b and 3 more`."""
    shown = ", ".join(map(str, words[:most]))
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"
