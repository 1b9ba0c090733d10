"""The cost of a run on this machine: measured by a trial of a few steps and one evaluation, and kept.

As many trials of a cell run side by side as runs will, so that they see the load that the runs will see.
"""

import hashlib
import json
import math
import platform
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_zoo.compare.contenders import Contender
from lora_zoo.core.bounded_json import read_json
from lora_zoo.runs.record import made, read_record, write_atomically
from lora_zoo.sweeps.cells import with_keys

STEPS = 20
"""Of a trial: enough for a median step."""
FILE = ".compare-costs.json"

Front = Callable[[Sequence[str]], int]
"""Runs a sweep's command line and gives its exit code."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, of what else a run takes, of it for test, and of loading, once a worker."""

    step: float
    rest: float
    test: float
    load: float
    examples: int
    """Of training, for runs that are given in epochs."""

    def seconds(self, steps: int, *, test: bool = True) -> float:
        """Of one run, where its worker has loaded model and data before; `test`: it is judged on test."""
        return self.rest + self.step * steps - (0 if test else self.test)


def costs(cells: Sequence[Contender], jobs: int, out: Path, front: Front) -> dict[str, Cost]:
    """The cost of a run of each cell, by its identity. ValueError where a trial fails."""
    kept = _kept(out / FILE)
    for cell in cells:
        key = _key(cell, jobs)
        if key not in kept:
            kept[key] = asdict(_trial(cell, jobs, front))
            write_atomically(made(out) / FILE, json.dumps(kept, indent=1))
    return {cell.identity: Cost(**kept[_key(cell, jobs)]) for cell in cells}


def steps_of(cell: Contender, cost: Cost, batch: int) -> int:
    """The optimiser steps of a run of the cell; of epochs by the number of training examples."""
    if cell.steps is not None:
        return cell.steps
    return math.ceil(math.ceil(cost.examples / batch) * float(cell.epochs or 1))


def _kept(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    fields = set(Cost.__dataclass_fields__)
    if not isinstance(content, dict):
        return {}
    return {k: v for k, v in content.items() if isinstance(v, dict) and v.keys() == fields}


def _key(cell: Contender, jobs: int) -> str:
    text = f"{cell.identity} {jobs} {platform.node()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _trial(cell: Contender, jobs: int, front: Front) -> Cost:
    with tempfile.TemporaryDirectory(prefix="lora-zoo-trial-") as nowhere:
        seeds = ",".join(map(str, range(jobs)))
        own = [f"seed={seeds}", f"out={nowhere}", f"hydra.sweep.dir={nowhere}/trial"]
        front([*with_keys(cell.overrides, {"epochs": "null", "steps": STEPS}), *own])
        records = [read_record(folder) for folder in sorted(Path(nowhere, "trial").glob("*-*"))]
        return cost_of(cell, [record for record in records if record])


def cost_of(cell: Contender, records: Sequence[Mapping[str, Any]]) -> Cost:
    """The cost by the records of its trials, the slowest of each part. ValueError where one has failed."""
    broken = [record for record in records if record["state"] not in ("done", "diverged")]
    if broken or not records:
        why = broken[0].get("error", {}).get("message", broken[0]["state"]) if broken else "it left no record"
        alone = shlex.join(["lora-zoo", *cell.overrides, f"steps={STEPS}"])
        raise ValueError(f"{cell.label}: a trial of {STEPS} steps failed: {why}; alone: {alone}")
    times, data = [record["timings"] for record in records], records[0]["data"]
    if lacking := [split for split in ("validation", "test") if split not in data]:
        raise ValueError(
            f"the task has no split {lacking[0]}: rates are chosen on validation, verdicts are on test"
        )
    share = data["test"]["size"] / (data["validation"]["size"] + data["test"]["size"])
    return Cost(
        step=max(t.get("step_median", 0.0) for t in times),
        rest=max(t["total"] - t.get("train", 0.0) - t.get("load", 0.0) for t in times),
        test=share * min(t.get("evaluate", 0.0) for t in times),
        load=max(t.get("load", 0.0) for t in times),
        examples=data["train"]["size"],
    )
