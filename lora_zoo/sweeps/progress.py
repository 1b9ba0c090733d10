"""The progress of a sweep, kept in files of its folder: its runs may be made by several processes."""

import os
import time
from pathlib import Path

from lora_zoo.runs.record import made, write_atomically

_JOBS, _BEGAN = ".jobs", ".began"
_CODE, _WITH_RUN = ".outcome-", ".outcome-run-"


def expect(sweep: Path, jobs: int) -> None:
    """Note that the sweep has so many jobs, as far as is known."""
    write_atomically(made(sweep) / _JOBS, str(jobs))


def note(sweep: Path, job: int, code: int, began: float | None = None) -> None:
    """Note the exit code of a job and, of one that made a run, when the run began (`time.time()`)."""
    if began is not None and not (sweep / _BEGAN).exists():
        write_atomically(sweep / _BEGAN, str(began))
    write_atomically(sweep / f"{_CODE if began is None else _WITH_RUN}{job}", str(code))


def progress(sweep: Path) -> str:
    """The number of jobs that have ended, and the time for the others at this pace; "" where unknown."""
    if not (sweep / _JOBS).exists():
        return ""
    names = [entry.name for entry in os.scandir(sweep) if entry.name.startswith(_CODE)]
    ended, jobs = len(names), int((sweep / _JOBS).read_text())
    runs = sum(name.startswith(_WITH_RUN) for name in names)
    if ended >= jobs or not runs:
        return f"{ended} of {jobs}"
    pace = (time.time() - float((sweep / _BEGAN).read_text())) / runs
    return f"{ended} of {jobs}, about {readable_time(pace * (jobs - ended))} left"


def codes(sweep: Path) -> list[int]:
    """The exit codes of the jobs that have ended."""
    return [int(path.read_text()) for path in sweep.glob(f"{_CODE}*")]


def clear(sweep: Path) -> None:
    """Remove all notes, also those of a sweep that was killed."""
    for path in (*sweep.glob(f"{_CODE}*"), sweep / _JOBS, sweep / _BEGAN):
        path.unlink(missing_ok=True)


def readable_time(seconds: float) -> str:
    """A time in its unit: below two minutes s, below two hours min, else h."""
    for unit, size in (("s", 1), ("min", 60)):
        if round(seconds / size) < 120:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
