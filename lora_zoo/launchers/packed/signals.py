"""Stop several jobs of one process on a signal: see `lora_zoo.training.signals`."""

import contextlib
import os
import signal
from collections.abc import Callable, Hashable, Iterator
from types import FrameType
from typing import Self

from lora_zoo.training.signals import PATIENCE, SignalHandler, Stopped, exit_soon, set_alarm


class SharedSignalHandler(SignalHandler):
    """Jobs that train finish their step and save, in turn; others leave as soon as it is their turn.

    `running` is the job whose turn it is, None between turns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: Hashable | None = None
        self._late = self._told = False
        self._deferring_jobs: set[Hashable] = set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[Self]:
        """Inside, the signals stop the jobs; afterwards raises Stopped if there was one."""
        with super().listening():
            yield self
            if self.received is not None:
                exit_soon(self.received)
                self._requeue(self.received)
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise Stopped(self.received)

    def new_round(self) -> None:
        """Tell the jobs of a signal from here on: each of them is at the same step now."""
        self._told = self.received is not None

    @property
    def stopping(self) -> bool:
        return self._told

    @contextlib.contextmanager
    def defer(self) -> Iterator[None]:
        job = self.running
        self._deferring_jobs.add(job)
        try:
            yield
        finally:
            self._deferring_jobs.discard(job)

    def due(self, job: Hashable) -> Stopped | None:
        """The exception that ends `job` when its turn comes, None for a job that goes on."""
        if self.received is None or (job in self._deferring_jobs and not self._late):
            return None
        return Stopped(self.received)

    def leave(self, record: Callable[[], None]) -> None:
        """Call `record`; the process itself leaves once every job has."""
        record()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        set_alarm(PATIENCE, self._overdue)
        if self.running is not None and (stopped := self.due(self.running)):
            raise stopped

    def _overdue(self, *_: object) -> None:
        assert self.received is not None
        self._late = True
        exit_soon(self.received)
        if self.running is not None:
            raise Stopped(self.received)
