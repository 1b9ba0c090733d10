"""The plans of a sweep, kept in its folder beside the runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_zoo.analysis.columns import format_key
from lora_zoo.core.bounded_json import read_json
from lora_zoo.runs.loading import CELLS
from lora_zoo.runs.record import made, plain, write_atomically
from lora_zoo.sweeps.cells import keys_of


def kept(folder: Path, name: str) -> dict[str, Any]:
    """The plan that a sweep's folder holds under this name, {} where it has none."""
    path = folder / name
    return dict(read_json(path)) if path.is_file() else {}


def keep(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Add this content to the plan."""
    text = json.dumps(plain(kept(folder, name) | dict(content)), indent=1)
    write_atomically(made(folder) / name, text + "\n")


def keep_found(folder: Path, name: str, found: Mapping[tuple[str, ...], str]) -> None:
    """Add what was found for each cell, by its overrides, to what earlier sweeps of the folder found."""
    new = {json.dumps(list(cell)): text for cell, text in found.items()}
    cells: dict[str, str] = kept(folder, name).get(CELLS, {}) | new
    names = map(format_key, keys_of([json.loads(cell) for cell in cells]))
    told = (f"{key}: {text}" for key, text in zip(names, cells.values(), strict=True))
    keep(folder, name, {CELLS: cells, "found": "; ".join(told)})


def check_plan(folder: Path, name: str, group: str, now: Mapping[str, Any]) -> None:
    """Raise ValueError where the folder's runs were looked at by a plan that differs in a key of `now`."""
    before = kept(folder, name)
    changed = [key for key in now if key in before and before[key] != now[key]]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{group}.{key}={now[key]}: {folder} was looked at with {group}.{key}={before[key]}; a plan that "
            "is changed after looking chooses by what it saw, so go on with that one, or give another folder"
        )
