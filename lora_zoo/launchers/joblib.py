"""Runs side by side in worker processes (`hydra/launcher=joblib`): who is told to stop, and how many threads.

A worker leaves the terminal's process group, so that Ctrl-C reaches the process in front alone; that passes
every signal on, once, and waits until the runs in hand have written their checkpoints.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from lora_zoo.training.signals import REQUEUE, SIGNALS, Stopped, requeue

FRONT = "LORA_ZOO_FRONT"  # the process id of the process in front
_WORKER, _STOP = ".worker-", ".stop"


def asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for this launcher."""
    return "joblib" in [a.partition("=")[2] for a in arguments if a.startswith("hydra/launcher=")]


def defaults(arguments: Sequence[str]) -> list[str]:
    """What the launcher is told beside the command line: a worker takes one run at a time."""
    key = "hydra.launcher.batch_size="
    return [] if any(a.lstrip("+").startswith(key) for a in arguments) else [f"{key}1"]


def is_one() -> bool:
    """Whether this process is a worker. With n_jobs=1 joblib makes none, and runs are in the front's own."""
    return os.environ.get(FRONT, str(os.getpid())) != str(os.getpid())


class Front:
    """The process that the user started. `asked` is the signal that ended the sweep, or None."""

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        self.asked: int | None = None

    @contextlib.contextmanager
    def conducting(self) -> Iterator["Front"]:
        """Inside, a signal is passed on to the workers and waited for; a second one ends all at once."""
        self._clear()
        before = {number: signal.signal(number, self._told) for number in SIGNALS}
        os.environ[FRONT] = str(os.getpid())
        try:
            yield self
        finally:
            del os.environ[FRONT]
            for number, handler in before.items():
                signal.signal(number, handler)
            self._clear()
            if self.asked in REQUEUE:
                requeue()

    def _told(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked is not None, number
        with contextlib.suppress(OSError):
            (self.sweep / _STOP).write_text(str(number))  # for workers between two runs
        for path in self.sweep.glob(f"{_WORKER}*"):
            with contextlib.suppress(OSError):
                os.kill(int(path.name.removeprefix(_WORKER)), number)
        if again:
            os._exit(128 + number)

    def _clear(self) -> None:
        for path in (*self.sweep.glob(f"{_WORKER}*"), self.sweep / _STOP):
            path.unlink(missing_ok=True)


def enter(sweep: Path, jobs: int) -> None:
    """Make this process a worker of the sweep, unless it is one: of `jobs` workers, -1 for one a core."""
    mark = sweep / f"{_WORKER}{os.getpid()}"
    if mark.exists():
        return
    import torch
    from joblib import cpu_count, effective_n_jobs

    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # between two runs: the mark that stops the next one is there
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(max(1, cpu_count() // max(1, effective_n_jobs(jobs))))
    mark.touch()


def stopped(sweep: Path) -> bool:
    """Whether no further run is to begin: the user said so, or the process in front has died."""
    if FRONT not in os.environ:
        return False
    return (sweep / _STOP).exists() or (is_one() and os.environ[FRONT] != str(os.getppid()))


def uninterrupted(run: Callable[[], int]) -> int:
    """The exit code of `run`; a run that is told to stop gives its code, and the worker lives on.

    A worker that dies takes the others with it, whose checkpoints are not yet written.
    """
    try:
        return run()
    except Stopped as told:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the run's own threat to leave
        return told.code
