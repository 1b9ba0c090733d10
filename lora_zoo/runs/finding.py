"""Runs under a folder by what they are: a finished one serves whoever asks for it, wherever it lies.

finished(Path("runs"), "1c28c951")    # runs/sweep-rank-0fe2/lora-r2-…-1c28c951, or None
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_zoo.config.spec import RunSpec
from lora_zoo.runs.loading import EXPERIMENT
from lora_zoo.runs.provenance import changes_results
from lora_zoo.runs.record import FINISHED, read_record, write_atomically
from lora_zoo.runs.redact import redacted

_NAME = re.compile(r"(?P<name>.+)-(?P<identity>[0-9a-f]{8})(?:-\d+)?")


def finished(root: Path, identity: str) -> Path | None:
    """The folder of a finished run of this identity, in `root` or in a folder of it; a done one first."""
    states = {}
    for folder, _, own in _runs(root):
        if own == identity:
            record = read_record(folder)
            if record.get("identity") == identity:
                states[folder] = record.get("state")
    return next((folder for state in FINISHED for folder, s in states.items() if s == state), None)


def link(folder: Path, sweep: Path, experiment: Mapping[str, Any]) -> None:
    """Make a finished run one of a sweep, and of its experiment: the sweep's folder refers to it.

    OSError where the file system has no links.
    """
    there = sweep / folder.name
    if folder.parent.resolve() == sweep.resolve() or os.path.lexists(there):
        return
    if experiment:
        write_atomically(sweep / EXPERIMENT, json.dumps(experiment))
    there.symlink_to(os.path.relpath(folder.resolve(), sweep.resolve()), target_is_directory=True)


def why_anew(root: Path, spec: RunSpec) -> str:
    """The reason why no run under `root` is the one that `spec` asks for: what differs from the nearest."""
    known = [(folder, read_record(folder)) for folder, name, _ in _runs(root) if name == spec.name]
    differing = [(list(_differing(record, spec)), folder) for folder, record in known if record]
    if not differing:
        return f"no run called {spec.name} lies under {root}"
    reasons, folder = min(differing, key=lambda one: len(one[0]))
    told = "; ".join(reasons[:5]) or "its identity was made by another version of lora_zoo"
    return f"{folder.name} is another run: {told}"


def _runs(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Folder, name and identity of the runs in `root` and in its folders; links are not followed."""
    for folder in (root, *_folders(root)):
        for run in _folders(folder):
            if match := _NAME.fullmatch(run.name):
                yield run, match["name"], match["identity"]


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _differing(record: Mapping[str, Any], spec: RunSpec) -> Iterator[str]:
    """The parts of an earlier run that are not as `spec` asks for them, as sentences."""
    then, now = _flat(record.get("config", {})), _flat(redacted(asdict(spec.settings)))
    for key in dict.fromkeys([*then, *now]):
        a, b = then.get(key), now.get(key)
        if changes_results(key) and a != b and str(a) != str(b):
            yield f"{key} was {a} and is {b}"
    made, today = record.get("made_of") or {}, spec.made_of
    if made.get("source", today["source"]) != today["source"]:
        yield f"the source of {spec.variant.name} has changed"
    files, before = today["data"], made.get("data", today["data"])
    for name in (name for name in files if files[name] != before.get(name)):
        yield f"{name}: {'the content has changed' if name in before else 'not recorded by that run'}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found
