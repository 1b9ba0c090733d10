"""The rest of each run's task in a model that is composed of several, as `compose --evaluate` found it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.core.bounded_json import read_json
from lora_zoo.runs.record import plain, write_atomically

RETAINED = "retained.json"
COLUMNS = ("folder", "by", "options", "split", "run", "task", "metric", "alone", "composed")
"""Texts but for the last two; `options` as on the command line, in one text."""
_SHARED = COLUMNS[1:4]


def keep_retained(
    folder: Path, by: str, options: Mapping[str, Any], split: str, tasks: Sequence[Mapping[str, Any]]
) -> None:
    """Write to a composed model's folder what is left of the `tasks` (rows of run, task, …) on a split."""
    words = " ".join(f"{key}={plain(value)}" for key, value in sorted(options.items()))
    about = {"by": by, "options": words, "split": split, "tasks": [plain(dict(task)) for task in tasks]}
    write_atomically(folder / RETAINED, json.dumps(about, indent=1) + "\n")


def merges(*sources: str | Path) -> pd.DataFrame:
    """Rows of COLUMNS, one a composed model and task below `sources`. ValueError for another form."""
    files = sorted({file for source in sources for file in Path(source).rglob(RETAINED)})
    return pd.DataFrame([row for file in files for row in _rows(file)], columns=list(COLUMNS))


def _rows(file: Path) -> list[dict[str, Any]]:
    about: Any = read_json(file)
    try:
        shared = {"folder": str(file.parent)} | {key: about[key] for key in _SHARED}
        rows = [shared | {key: task[key] for key in COLUMNS[4:]} for task in about["tasks"]]
        texts = all(isinstance(row[key], str) for row in rows for key in COLUMNS[:-2])
        numbers = all(math.isfinite(row[key]) for row in rows for key in COLUMNS[-2:])
    except (KeyError, TypeError):
        texts = numbers = False
    if not texts or not numbers:
        raise ValueError(f"{file} must hold by, options, split and tasks, as compose --evaluate writes it")
    return rows
