"""Stop a run on Ctrl-C, on SIGTERM, and on the signal that Slurm sends ahead of a job's end.

A run that trains finishes its step, writes a checkpoint and leaves; elsewhere it leaves at once, since the
last checkpoint holds all that it has. A second signal ends the process at once. Whatever it is doing, the
process has left ten seconds after a signal: a thread sees to it.

| signal | sent by | exit code |
|---|---|---|
| SIGINT | Ctrl-C | 130 |
| SIGTERM | kill, a pre-emption, the end of a Slurm job's time | 143 |
| SIGHUP | a terminal that is closed; under nohup it stays ignored | 129 |
| SIGUSR1 | `sbatch --signal=USR1@120`; the job is put into the queue again | 138 |
| SIGUSR2 | Hydra's submitit launcher, which puts the job into the queue again by itself | 140 |
"""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from lora_zoo.core.processes import current
from lora_zoo.training.watchdog import Watchdog, call_off

PATIENCE = 7.0  # seconds that a step has to end, of the ten in which a run promises to leave
LAST = 2.0  # seconds for what is closed afterwards
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, n) for n in _NAMES if hasattr(signal, n))
REQUEUE = tuple(getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n))


class Stopped(KeyboardInterrupt):
    """The run was stopped by a signal; `code` is the exit code of a process that a signal ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.code = number, 128 + number


class SignalHandler:
    """Stops a run on signals. `received` is the number of the first one, None before.

    Of several processes all stop where one has received a signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferring = False
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[Self]:
        """Inside, the signals above stop the run. In a thread that is not the main one, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        dog = Watchdog(SIGNALS)
        dog.start()
        self._before = handle(self._receive)
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            if self.received is None:
                dog.stop()

    @property
    def stopping(self) -> bool:
        """True if training is to end after the present step."""
        return self.agree() is not None

    def agree(self) -> int | None:
        """The signal that one of the processes has received, if any; all of them ask at the same step."""
        self.received = current().greatest(self.received or 0) or None
        return self.received

    @contextlib.contextmanager
    def defer(self) -> Iterator[None]:
        """Inside, a signal is noted in `received` and the block goes on, for at most `PATIENCE` seconds."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if current().size > 1:  # torchrun sends on what the terminal sends as well
                return
            os._exit(128 + number)
        self.received = number
        if not self._deferring:
            raise Stopped(number)
        set_alarm(PATIENCE, self._overdue)

    def _overdue(self, *_: object) -> None:
        assert self.received is not None
        exit_soon(self.received)
        raise Stopped(self.received)

    def leave(self, record: Callable[[], None]) -> None:
        """Call `record`, which notes the stop; queue the job again if the signal was Slurm's."""
        number = self.received or signal.SIGINT
        exit_soon(number)
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


def handle(handler: Callable[..., object]) -> dict[int, Any]:
    """Install a handler for the signals, and return the ones before. What nohup ignores stays ignored."""
    nohup = {n for n in SIGNALS if n.name == "SIGHUP" and signal.getsignal(n) == signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number in SIGNALS if number not in nohup}


def live_on() -> None:
    """Call off every threat to leave: the run was stopped, and its process has others to run."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    call_off()


def requeue() -> None:
    """Put the Slurm job that this process belongs to, if any, into the queue again."""
    if job := os.environ.get("SLURM_JOB_ID"):
        with contextlib.suppress(OSError):
            subprocess.run(["scontrol", "requeue", job], check=False)


def set_alarm(seconds: float, call: Callable[..., object]) -> None:
    signal.signal(signal.SIGALRM, call)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def exit_soon(number: int) -> None:
    """Let the process exit after `LAST` seconds as signal `number` ends one, whatever is still going on."""
    set_alarm(LAST, lambda *_: os._exit(128 + number))


# Python drops its handlers while it shuts down: an alarm after that would end the process with its own code.
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
