"""Being told to stop: Ctrl-C, SIGTERM, and the signal that Slurm sends ahead of a job's end.

A run that trains finishes its step, writes a checkpoint and leaves; elsewhere it leaves at once, since the
last checkpoint says it all. A second signal leaves without another word.

| signal | sent by | exit code |
|---|---|---|
| SIGINT | Ctrl-C | 130 |
| SIGTERM | kill, a pre-emption, the end of a Slurm job's time | 143 |
| SIGUSR1 | `sbatch --signal=USR1@120`; the job is put into the queue again | 138 |
| SIGUSR2 | Hydra's submitit launcher, which puts the job into the queue again by itself | 140 |
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

PATIENCE = 7.0  # seconds that a step has to end, of the ten in which a run promises to leave
LAST = 2.0  # seconds for what is closed afterwards
SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, n))
REQUEUE = tuple(getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n))


class Stopped(KeyboardInterrupt):
    """The run was told to stop; `code` is the exit code of a process that a signal ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.code = number, 128 + number


class SignalHandler:
    """Whether this process was told to stop. `patient()` puts it off to the end of the block."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._patient = False
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator["SignalHandler"]:
        """Inside, the signals above stop the run. In a thread that is not the main one, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._before = {number: signal.signal(number, self._told) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Inside, a signal is noted and the block goes on, for at most `PATIENCE` seconds."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            os._exit(128 + number)
        self.asked = number
        if not self._patient:
            raise Stopped(number)
        after(PATIENCE, self._impatient)

    def _impatient(self, *_: object) -> None:
        assert self.asked is not None
        at_the_latest(self.asked)
        raise Stopped(self.asked)

    def leave(self, record: Callable[[], None]) -> None:
        """Record that the run was stopped, put the job into the queue again where Slurm asked for it."""
        number = self.asked or signal.SIGINT
        at_the_latest(number)
        record()
        self._requeue(number)

    def _requeue(self, number: int) -> None:
        if number not in REQUEUE:
            return
        before = self._before.get(number)
        if callable(before):
            signal.setitimer(signal.ITIMER_REAL, 0)
            before(number, None)  # submitit's own handler, which submits the job anew and exits
        else:
            requeue()


def requeue() -> None:
    """Put the Slurm job that this process belongs to, if any, into the queue again."""
    if job := os.environ.get("SLURM_JOB_ID"):
        with contextlib.suppress(OSError):
            subprocess.run(["scontrol", "requeue", job], check=False)


def after(seconds: float, call: Callable[..., object]) -> None:
    signal.signal(signal.SIGALRM, call)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def at_the_latest(number: int) -> None:
    """Whatever is still going on in `LAST` seconds, the process leaves as signal `number` ends one."""
    after(LAST, lambda *_: os._exit(128 + number))
