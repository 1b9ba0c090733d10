"""A finding about runs, and how it speaks of them."""

from pathlib import PurePath
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.columns import listed


class Finding(NamedTuple):
    """A mistake or a doubt: `rows` of the frame are not to be counted for it; none: it is a warning."""

    kind: str
    runs: list[str]
    said: str
    rows: tuple[Any, ...] = ()


def left_out(kind: str, rows: pd.DataFrame, said: str, of: pd.DataFrame | None = None) -> Finding:
    """The finding that `rows` are not to be counted; it names the runs `of`, or those of the rows."""
    return Finding(kind, names(rows if of is None else of), said, tuple(rows.index))


def names(frame: pd.DataFrame) -> list[str]:
    """The identities of the runs; the rows' labels where a frame has none."""
    return [str(run) for run in frame["run"]] if "run" in frame else [str(row) for row in frame.index]


def named(frame: pd.DataFrame) -> str:
    """`lora-r8-qv-pocket-pocket-sql-s0-8937c46d is`: at most three runs, by folder, else by name."""
    shown = [_called(row) for _, row in frame.iterrows()]
    return f"{listed(shown, 3)} {'is' if len(frame) == 1 else 'are'}"


def _called(row: pd.Series) -> str:
    """The last part of the folder; of a run that has none, out of an archive, its name and identity."""
    if isinstance(folder := row.get("folder"), str) and folder:
        return PurePath(folder).name
    return "-".join(str(row[c]) for c in ("name", "run") if c in row) or f"row {row.name}"


def told(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of texts; "" where it or a value is missing."""
    if column not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame[column].fillna("").astype(str)


def there(frame: pd.DataFrame, column: str) -> list[str]:
    return [column] if column in frame else []
