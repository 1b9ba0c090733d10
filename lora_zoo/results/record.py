"""A run's folder and its `result.json`, written whole or not at all.

`result.json`, schema 1. Times are seconds, sizes bytes, rates lie in 0..1 unless the metric says otherwise.

| key | holds |
|---|---|
| schema, name, identity | this table's version; a readable name; the hash of what can change the result |
| state | running, done, diverged, failed or interrupted; `error` (type, message) says why |
| command, started, ended | the command line; UTC times |
| config | the resolved configuration |
| variant | name, paper, equation and all hyperparameters as used |
| metric | the name of the metric that counts |
| metrics, zero_shot | split: {metric: value}, after training and before it |
| history | one entry per log: step, epoch, loss (the task's alone), learning_rate, grad_norm, eval_* |
| parameters | trainable, total, share, adapted (matrices), in_full (names of tensors trained as they are) |
| adapter | folder, bytes |
| timings | load, zero_shot, train, evaluate, total; steps; step_median and step_mean, optimiser steps alone |
| memory | peak_rss, and peak_cuda on a GPU |
| updates | per changed matrix: shape, norms, stable and effective rank, singular values of ΔW |
| data | split: size and content hash |
| environment | versions, platform, device, threads; commit and dirty flag of the code |
| seed, data_seed | the seeds |

Beside it: `examples-SPLIT.jsonl` (item, prediction, reference, score), `config.yaml`, `adapter/`, `run.log`.
"""

import datetime
import json
import math
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
RESULT = "result.json"
STATES = ("running", "done", "diverged", "failed", "interrupted")


def claim_folder(root: str | Path, name: str) -> Path:
    """Make and return `root/name`, or `root/name-2`, … where it exists: nothing is ever overwritten."""
    Path(root).mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        folder = Path(root) / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return folder


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`, synced to disk first."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class Record:
    """The folder of one run. Every `update` leaves a complete `result.json` behind."""

    def __init__(self, folder: Path, **content: Any) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"schema": SCHEMA, "state": "running", "started": now()}
        self.update(**content)

    def update(self, **content: Any) -> None:
        self.content |= content
        text = json.dumps(plain(self.content), indent=1, allow_nan=False)
        write_atomically(self.folder / RESULT, text + "\n")

    def end(self, state: str, **content: Any) -> None:
        assert state in STATES, state
        self.update(state=state, ended=now(), **content)

    def examples(self, split: str, outcomes: list[dict[str, Any]]) -> None:
        """Keep what the model answered for each example of a split."""
        lines = (json.dumps(plain(outcome), ensure_ascii=False, allow_nan=False) for outcome in outcomes)
        write_atomically(self.folder / f"examples-{split}.jsonl", "\n".join(lines) + "\n")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """`value` as JSON knows it; numbers that are none become their names, since JSON has no NaN."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value.item() if hasattr(value, "item") else str(value)
