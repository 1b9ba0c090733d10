"""Reasons why a cell cannot decide a claim: untuned, it diverged; or a busy machine timed it."""

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pandas as pd

TIMES = ("load_seconds", "step_seconds", "train_seconds", "total_seconds")
"""Columns that other work on the machine changes."""
FIXED = ("trainable", "total", "adapted", "adapter_bytes", "saved_bytes", "peak_memory")
"""Columns that do not depend on how a training went."""
IDLE = 0.9
"""The share of a core that a process has while nothing else runs, at least."""


class Doubt(StrEnum):
    """The reason why a cell cannot decide a claim."""

    UNTUNED = "untuned"
    BUSY = "busy machine"


def rising(runs: pd.DataFrame) -> int:
    """The number of runs whose training loss ends above the first that was logged."""
    return sum(map(_rises, runs["history"])) if "history" in runs else 0


def _rises(history: Any) -> bool:
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    losses = pd.to_numeric(pd.Series([entry.get("loss") for entry in entries]), errors="coerce").dropna()
    return len(losses) > 3 and bool(losses.iloc[-3:].mean() > losses.iloc[0])


def of_the_machine(words: str, rows: pd.DataFrame) -> Iterator[tuple[str, Doubt]]:
    known = rows["cpu_share"].min() if "cpu_share" in rows else math.nan
    if not known >= IDLE:
        how = (
            "it is not known that the machine did nothing else"
            if math.isnan(known)
            else f"the machine did other work: the process had {100 * known:.0f} % of a core"
        )
        yield f"busy machine: of the seconds with {words} {how}", Doubt.BUSY
