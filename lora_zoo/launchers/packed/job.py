"""One job of a pack, in a greenlet of its own."""

import enum
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

from lora_zoo.injection.inject import Injection
from lora_zoo.launchers.packed.joining import Inputs
from lora_zoo.launchers.packed.process_state import ProcessState


class Waiting(enum.Enum):
    """The event that a job waits for: its turn, a shared pass, or the end of all others (ALONE)."""

    TURN = enum.auto()
    FORWARD = enum.auto()
    BACKWARD = enum.auto()
    ALONE = enum.auto()


class PackedJob:
    """One job of a pack: `body` is called with it, and its result is the `outcome`."""

    def __init__(self, name: str, body: Callable[["PackedJob"], Any], process_state: ProcessState) -> None:
        self.name, self.body, self.process_state = name, body, process_state
        self.hub = getcurrent()
        self.greenlet = greenlet(self._run)
        self.waits = Waiting.TURN
        self.inputs: Inputs = {}
        self.outputs: Any = None
        self.injection: Injection | None = None
        self.most, self.reason = 1, ""
        """The most jobs that shared a pass with it, itself included; the reason why it ran alone."""
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._due: BaseException | None = None

    def _run(self) -> None:
        try:
            self.outcome = self.body(self)
        except BaseException as error:  # Stopped as well: the others are given their turn first
            self.error = error

    def resume(self, ends: BaseException | None) -> None:
        """Run the job until it waits or ends; `ends`, or the error of a pass that it is part of, ends it."""
        self.waits = Waiting.TURN
        due, self._due = ends or self._due, None
        if due is None:
            self.greenlet.switch()
        elif self.greenlet:
            self.greenlet.throw(due)
        else:
            self.error = due  # it has not begun

    def wait(self, until: Waiting) -> None:
        """Let the others run until the event has happened."""
        assert getcurrent() is self.greenlet, "a job waits in its own greenlet"
        self.waits = until
        self.hub.switch()

    def fail(self, error: BaseException) -> None:
        """Have `error` raised in the job when its turn comes."""
        self.waits, self._due = Waiting.TURN, error
