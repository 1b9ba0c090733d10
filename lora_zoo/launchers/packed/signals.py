"""Being told to stop, for several jobs in one process: see `lora_zoo.training.signals`."""

import contextlib
import os
import signal
from collections.abc import Callable, Hashable, Iterator
from types import FrameType

from lora_zoo.training.signals import PATIENCE, SignalHandler, Stopped, after, at_the_latest


class SharedSignalHandler(SignalHandler):
    """Jobs that train finish their step and save, in turn; others leave as soon as it is their turn.

    `running` is the job whose turn it is, None between turns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: Hashable | None = None
        self.late = False
        self._patients: set[Hashable] = set()

    @contextlib.contextmanager
    def listening(self) -> Iterator["SharedSignalHandler"]:
        """Nothing of a single job's: the pack listens for all of them, in `attended`."""
        yield self

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """Inside, the signals stop the jobs; afterwards raises Stopped if there was one."""
        with super().listening():
            yield
            if self.asked is not None:
                at_the_latest(self.asked)
                self._requeue(self.asked)
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise Stopped(self.asked)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        job = self.running
        self._patients.add(job)
        try:
            yield
        finally:
            self._patients.discard(job)

    def due(self, job: Hashable) -> Stopped | None:
        """What `job` is to be told when its turn comes."""
        if self.asked is None or (job in self._patients and not self.late):
            return None
        return Stopped(self.asked)

    def leave(self, record: Callable[[], None]) -> None:
        record()

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            os._exit(128 + number)
        self.asked = number
        after(PATIENCE, self._impatient)
        if self.running is not None and (told := self.due(self.running)):
            raise told

    def _impatient(self, *_: object) -> None:
        assert self.asked is not None
        self.late = True
        at_the_latest(self.asked)
        if self.running is not None:
            raise Stopped(self.asked)
