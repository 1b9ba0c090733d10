"""Runs side by side in worker processes (`hydra/launcher=joblib`): who is stopped, and how many threads.

A worker leaves the terminal's process group, so that Ctrl-C reaches the process in front alone; that passes
every signal on, once, and waits until the runs in hand have written their checkpoints.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from lora_zoo.launchers.base import LAUNCHERS, Launcher
from lora_zoo.terminal import say
from lora_zoo.training.signals import REQUEUE, Stopped, handle, live_on, requeue
from lora_zoo.training.watchdog import WITHIN

FRONT = "LORA_ZOO_FRONT"  # the process id of the process in front
_WORKER, _DEVICE, _STOP = ".worker-", ".device-", ".stop"


@LAUNCHERS.register("joblib")
class Joblib(Launcher):
    """Several runs at a time, in worker processes. `received` is the signal that ended the sweep, or None."""

    defaults: ClassVar[Mapping[str, str]] = {"batch_size": "1"}  # a worker takes one run at a time

    def __init__(self, sweep: Path) -> None:
        super().__init__(sweep)
        self.received: int | None = None

    @classmethod
    def check(cls, asked: Mapping[str, str], jobs: int) -> None:
        """Raise ValueError for more workers than GPUs, where there are any: each has one of its own."""
        import torch
        from joblib import effective_n_jobs

        text, devices = asked.get("hydra.launcher.n_jobs", "-1"), torch.cuda.device_count()
        workers = min(effective_n_jobs(int(text)), jobs) if text.lstrip("-").isdigit() and int(text) else 1
        if 0 < devices < workers:
            raise ValueError(
                f"{workers} workers would share {devices} GPU{'s' if devices > 1 else ''}: give "
                f"hydra.launcher.n_jobs={devices}, or hydra/launcher=packed, which trains side by side on one"
            )

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Inside, a signal is passed on to the workers and waited for; a second one ends all at once."""
        try:
            with self._passing_on():
                yield
        except BrokenExecutor as death:
            self.broken = True
            if self.received is None:
                say(f"{death}; the same command runs what is missing")
        finally:
            if self.received is not None:
                raise Stopped(self.received)

    @contextlib.contextmanager
    def _passing_on(self) -> Iterator[None]:
        self._clear()
        before = handle(self._received)
        os.environ[FRONT] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[FRONT]
            for number, handler in before.items():
                signal.signal(number, handler)
            self._clear()
            if self.received in REQUEUE:
                requeue()

    def _received(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, number
        with contextlib.suppress(OSError):
            (self.sweep / _STOP).write_text(str(number))  # for workers between two runs
        for path in self.sweep.glob(f"{_WORKER}*"):
            with contextlib.suppress(OSError):
                os.kill(int(path.name.removeprefix(_WORKER)), number)
        if again:
            os._exit(128 + number)

    def _clear(self) -> None:
        for path in (*self.sweep.glob(f"{_WORKER}*"), *self.sweep.glob(f"{_DEVICE}*"), self.sweep / _STOP):
            path.unlink(missing_ok=True)

    def run(self, run: Callable[..., int], config: Any) -> int | None:
        if self.stopped():
            return None
        if not is_worker():
            return run()
        self._enter(config.n_jobs)
        return uninterrupted(partial(run, progress=False))

    def stopped(self) -> bool:
        """True where no further run is to begin: the user stopped the sweep, or the front has died."""
        if FRONT not in os.environ:
            return False
        return (self.sweep / _STOP).exists() or (is_worker() and os.environ[FRONT] != str(os.getppid()))

    def _enter(self, jobs: int) -> None:
        """Make this process a worker of the sweep, unless it is one: of `jobs` workers, -1 for one a core."""
        mark = self.sweep / f"{_WORKER}{os.getpid()}"
        if mark.exists():
            return
        import torch
        from joblib import cpu_count, effective_n_jobs

        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        handle(lambda *_: None)  # between two runs: the mark stops the next one
        threading.Thread(target=_outlive_no_front, args=[os.environ[FRONT]], daemon=True).start()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(max(1, cpu_count() // max(1, effective_n_jobs(jobs))))
        self._take_device(torch.cuda.device_count())
        mark.touch()

    def _take_device(self, devices: int) -> None:
        """Make the first GPU that no other worker has this one's own, before CUDA is begun."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else list(map(str, range(devices)))
        for number, name in enumerate(names[:devices]):
            with contextlib.suppress(FileExistsError):
                (self.sweep / f"{_DEVICE}{number}").touch(exist_ok=False)
                os.environ["CUDA_VISIBLE_DEVICES"] = name
                return


def _outlive_no_front(front: str) -> None:
    """Stop the run in hand, as SIGTERM does, and leave, once the process in front has died."""
    while str(os.getppid()) == front:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(WITHIN)
    os._exit(128 + signal.SIGTERM)


def is_worker() -> bool:
    """True in a worker. With n_jobs=1 joblib makes none, and runs are in the front's own process."""
    return os.environ.get(FRONT, str(os.getpid())) != str(os.getpid())


def uninterrupted(run: Callable[[], int]) -> int:
    """The exit code of `run`; a run that is stopped gives its code, and the worker lives on.

    A worker that dies takes the others with it, whose checkpoints are not yet written.
    """
    try:
        return run()
    except Stopped as stop:
        live_on()
        return stop.code
