"""The plans of a sweep, kept in its folder beside the runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_zoo.core.bounded_json import read_json
from lora_zoo.runs.record import made, plain, write_atomically


def kept(folder: Path, name: str) -> dict[str, Any]:
    """The plan that a sweep's folder holds under this name, {} where it has none."""
    path = folder / name
    return dict(read_json(path)) if path.is_file() else {}


def keep(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Add this content to the plan."""
    text = json.dumps(plain(kept(folder, name) | dict(content)), indent=1)
    write_atomically(made(folder) / name, text + "\n")


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
