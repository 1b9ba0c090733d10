"""A run's folder and its `result.json`, schema 1, written whole or not at all.

Times are seconds, sizes bytes.

| key | holds |
|---|---|
| schema, name, identity | this table's version; a readable name; the hash of what can change the result |
| made_of | settings, source, data: a hash of each part of the identity; absent from older results |
| | covers: the source is that of all that decides the adapter; without it, of variant and program alone |
| state | running, done, diverged, failed or interrupted; `error` (type, message) says why |
| command, started, ended | the command line; UTC times |
| resumed | one entry for each time that the run went on after it had ended: at (UTC), step |
| config | the resolved configuration |
| variant | name, paper, equation, hyperparameters as used; scales: the different scales s of the updates |
| views | of variants that have some: view: {split: {metric: value}}, the trained model judged another way |
| metric | the name of the metric that counts |
| metric_facts | by value of the metrics: higher_is_better, range (low, high); null where not declared |
| metrics, zero_shot | split: {metric: value}, after training and before it |
| zero_shot_measured_in | the run of the same process that it was measured in, which began as this one did |
| likelihood, zero_shot_likelihood | split: of its references nll (nats an item, mean), nats_per_token, |
| | bits_per_example, bits_per_token, items, tokens; absent for regression; view_likelihood: by view |
| groups, zero_shot_groups | split: {group: {metric: value}}, groups being the values of `task.groups`; the |
| | stages of a program but the last hold `groups`, and each the group that it learns |
| answers | split: items, different predictions (distinct) and references, the commonest class (common), |
| | only: the one answer where all are alike |
| majority | split: {metric: value} of the commonest class alone, where references are classes |
| history | one entry per log: step, epoch, loss (the task's alone), learning_rate, grad_norm, eval_*, |
| | rank/ROLE (mean) and rank/total where `ranks` are known |
| ranks | where they change: by matrix [[step, components], …]; of a program, all that its stages add up to |
| routing | of mixtures, split: by matrix load (the mean weight of each expert) and entropy (nats, the mean |
| | of a token's); within training the means over matrices are in `history`, as eval_routing_… |
| parameters | trainable, total, share, adapted (matrices), in_full (names of tensors trained as they are) |
| | final: trainable ones that were left after training, where some were dropped |
| prior | the frozen adapters under it: name, sha256, path; copies lie in `adapter/prior/` |
| start_from | the adapter that it trained on from: sha256, path |
| adapter | folder, bytes; SHA-256 of the tensors (sha256) and of adapter.json (description) |
| timings | load, zero_shot, train, evaluate, views, total; steps; step_median, step_mean: optimiser steps |
| | train_wall, and train_cpu, the processor's part of it, by which a busy machine is known |
| packed | jobs: so many trained side by side, a step of `timings` is all of theirs; alone: why by itself |
| memory | peak_rss, and peak_cuda on a GPU; saved, saved_frozen: kept for backward, adapters on and off |
| retention | of (the text), tokens; before, after: loss on it, nats a token; or why it was not measured |
| stages | of a program: per stage variant, steps, seed, inject, then, adapter, timings, logs of `history` |
| updates | per changed matrix: shape, norms, ranks, change of rows (magnitude, direction), singular values |
| data | split: size, content hash, left_out (by task.sizes) and, of a folder of classes, drawn (rows taken |
| | at random, the same for all runs); of those in use tokens (least, median, most), |
| | classes (examples of each) or labels (least, mean, most), items (where several examples are one), and |
| | information (bits, of all answers, where the data say it of each), and the number of examples that are |
| | cut, also_in_train (of a task learned by_heart that), or have task.stop within their target |
| findings | sentences: what a reader of the numbers has to know of the data |
| environment | versions, platform, device, threads; commit and dirty flag of the code |
| seed, data_seed | the seeds |
| diverged | step, layers: where the numbers stopped being any |
| best | of a run that keeps its best adapter: its step, of (the last step), metric, value |
| skipped | steps without an update, because a gradient was NaN or inf (on_nonfinite=skip) |

A result that says running, and whose folder no process holds, is of a run that was killed.

Beside it: `examples-SPLIT.jsonl` (item, prediction, reference, score; nll and tokens of the reference),
`config.yaml`, `adapter/`, `run.log`, `checkpoints/` while the run is not over, and `deltas.json`, where
`python -m lora_zoo.spectra --record` or an experiment made it: tables of `lora_zoo.updates`, rows as objects;
archives keep it under `deltas`.
"""

import contextlib
import datetime
import itertools
import json
import math
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from lora_zoo.core.bounded_json import read_json
from lora_zoo.runs.redact import redacted

SCHEMA = 1
RESULT = "result.json"
LOCK = ".lock"
STATES = ("running", "done", "diverged", "failed", "interrupted")
FINISHED = ("done", "diverged")


class Busy(ValueError):
    """Another process works in the run's folder."""


class FolderClaim(NamedTuple):
    """A run's folder, held by this process alone, and what an earlier process has recorded in it."""

    folder: Path
    before: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.before.get("state") in FINISHED


@contextlib.contextmanager
def claimed(root: str | Path, name: str, *, resume: bool) -> Iterator[FolderClaim]:
    """Inside, a run's folder is this process's own; a process that dies lets go of it.

    `resume` takes the folder of the same name that is there already: a finished run's before an unfinished
    one's, the latest of several. Raises Busy where another process holds it.
    """
    earlier = {folder: read_record(folder) for folder in _of_name(Path(root), name)} if resume else {}
    done = [folder for folder, before in earlier.items() if before.get("state") in FINISHED]
    folder = [*earlier, *done][-1] if earlier else claim_folder(root, name)
    lock = _locked(folder)
    try:
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield FolderClaim(folder, read_record(folder))
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: whoever waits for it looks at a file without a name
        lock.release()


def finished_run(root: Path, name: str, states: Sequence[str] = FINISHED) -> FolderClaim | None:
    """The latest run of this name in `root` that is in one of the `states`; None where there is none.

    Nobody holds its folder.
    """
    known = (FolderClaim(folder, read_record(folder)) for folder in _of_name(root, name))
    return next(reversed([run for run in known if run.before.get("state") in states]), None)


def validation_of(record: Mapping[str, Any]) -> float:
    """The validation score of a finished run, by the metric that counts; nan where it has none."""
    if record.get("state") != "done":
        return math.nan
    return float(record.get("metrics", {}).get("validation", {}).get(record["metric"], math.nan))


def _locked(folder: Path) -> FileLock:
    """The folder's lock, held. A holder may leave, and take the file's name away, between any two steps."""
    while True:
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            with contextlib.suppress(FileNotFoundError):  # it has left since
                holder = " ".join((folder / LOCK).read_text().split()) or "unknown"
                raise Busy(f"{folder} is in use by another process ({holder}); nothing was done") from error
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock._context.lock_file_fd or 0), (folder / LOCK).stat()):
                return lock
        lock.release()  # the file that it holds has no name any more: another process would take a new one


def _of_name(root: Path, name: str) -> Iterator[Path]:
    """`root/name`, `root/name-2`, … as far as they exist."""
    return itertools.takewhile(Path.is_dir, _numbered(root, name))


def _numbered(root: Path, name: str) -> Iterator[Path]:
    """`root/name`, `root/name-2`, … without an end."""
    yield root / name
    yield from (root / f"{name}-{number}" for number in itertools.count(2))


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a run's folder; {} where there is none that can be read."""
    try:
        content = read_json(folder / RESULT)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else {}


def claim_folder(root: str | Path, name: str) -> Path:
    """Make and return `root/name`, or `root/name-2`, … where it exists: nothing is ever overwritten."""
    return next(filter(_newly_made, _numbered(made(Path(root)), name)))


def _newly_made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def made(folder: Path) -> Path:
    """`folder`, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file that holds `content`, text as UTF-8, synced to disk first.

    Workers of one sweep may write the same file at once: each has a part of its own, and the last one stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in `folder` to disk: without it, a renamed file may be gone after a loss of power."""
    with contextlib.suppress(OSError):  # some file systems have no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Record:
    """The folder of one run. Every `update` leaves a complete `result.json` behind.

    `before` is what an earlier process has recorded of the same run; it is kept and gone on with.
    """

    def __init__(self, folder: Path, before: dict[str, Any] | None = None, **content: Any) -> None:
        self.folder = folder
        kept = {key: value for key, value in (before or {}).items() if key not in ("error", "ended")}
        self.content: dict[str, Any] = {"schema": SCHEMA, "started": now(), **kept, "state": "running"}
        self.update(**content)

    def update(self, **content: Any) -> None:
        self.content |= redacted(plain(content))
        text = json.dumps(self.content, indent=1, allow_nan=False)
        write_atomically(self.folder / RESULT, text + "\n")

    def tell(self, *findings: str) -> None:
        """Add what a reader of the numbers has to know, each sentence once."""
        self.update(findings=list(dict.fromkeys([*self.content.get("findings", []), *findings])))

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
