"""A pack: jobs that take turns in one process, and meet where the trunk of their model runs for all of them.

Each job runs in a greenlet of its own, the code of a solo run unchanged, until its training calls the trunk
or has gone backward through its head. There it waits. Once every job waits (or has ended), the pack makes one
pass with all batches, and gives each job its part. Exactly one job runs at a time, with its own ambient state
and as the one adapter in the model.
"""

import enum
import gc
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from lora_zoo.inject.adapter_set import adapters_of
from lora_zoo.inject.injection import Injection
from lora_zoo.launchers.packed.backbone import Backbone, ForwardPass, Inputs
from lora_zoo.launchers.packed.process_state import ProcessState
from lora_zoo.launchers.packed.signals import SharedSignalHandler

_log = logging.getLogger("lora_zoo")
Job = Callable[["PackedJob"], Any]


class Waiting(enum.Enum):
    """What a job waits for; TURN: for nothing but its turn."""

    TURN = enum.auto()
    FORWARD = enum.auto()
    BACKWARD = enum.auto()
    ALONE = enum.auto()


class PackedJob:
    """The place of one job in a pack: `job` is called with it, in a greenlet of its own."""

    def __init__(self, name: str, job: Job, process_state: ProcessState) -> None:
        self.name, self.job, self.process_state = name, job, process_state
        self.hub = getcurrent()
        self.greenlet = greenlet(self._run)
        self.waits = Waiting.TURN
        self.inputs: Inputs = {}
        self.outputs: Any = None
        self.injection: Injection | None = None
        self.most, self.reason = 1, ""
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._due: BaseException | None = None

    def _run(self) -> None:
        try:
            self.outcome = self.job(self)
        except BaseException as error:  # being told to stop, too: the others are given their turn first
            self.error = error

    def resume(self, told: BaseException | None) -> None:
        """Run the job until it waits or ends; `told`, or the error of a pass that it is part of, ends it."""
        self.waits = Waiting.TURN
        due, self._due = told or self._due, None
        if due is None:
            self.greenlet.switch()
        elif self.greenlet:
            self.greenlet.throw(due)
        else:
            self.error = due  # it has not begun

    def wait(self, until: Waiting) -> None:
        """Let the others run until what this job waits for has happened."""
        assert getcurrent() is self.greenlet, "a job waits in its own greenlet"
        self.waits = until
        self.hub.switch()

    def fail(self, error: BaseException) -> None:
        """Have `error` raised in the job when its turn comes."""
        self.waits, self._due = Waiting.TURN, error


class Pack:
    """Runs jobs on one trunk, at most `most` of them side by side; the next one begins where one ends."""

    def __init__(self, signals: SharedSignalHandler, most: int) -> None:
        self.signals, self.most = signals, most
        self.backbone: Backbone | None = None
        self._ambient = ProcessState()
        self._queue: deque[PackedJob] = deque()
        self._seats: list[PackedJob] = []
        self._gone: list[PackedJob] = []
        self._running: PackedJob | None = None
        self._passed: ForwardPass | None = None
        self._met: list[PackedJob] = []
        self._apart = False

    def run(self, jobs: Sequence[Job]) -> list[PackedJob]:
        """Run every job to its end and return their seats. What ends one early does not touch the others."""
        every = [PackedJob(f"job{number}", job, self._ambient) for number, job in enumerate(jobs)]
        self._queue = deque(every)
        try:
            while self._admitted():
                for seat in [seat for seat in self._seats if seat.waits is Waiting.TURN]:
                    self._turn(seat)
                self._together()
        finally:
            self._ambient.install()
            if self.backbone is not None:
                self.backbone.unroute()
        return every

    def share(self, backbone: Backbone) -> None:
        """From now on, jobs meet in `backbone`."""
        self.backbone = backbone
        backbone.route(self._call)

    def backward(self) -> None:
        """The job whose turn it is has gone back to its leaves: go on once the trunk has gone back, too."""
        seat = self._here()
        if seat in self._met:
            seat.wait(Waiting.BACKWARD)

    def run_alone(self, reason: str) -> None:
        """The job whose turn it is goes on once all others have ended."""
        self._here().reason = reason
        self._here().wait(Waiting.ALONE)

    def _call(self, inputs: Inputs) -> Any:
        """A training pass of the trunk, by the job whose turn it is: its part of a pass for all."""
        seat = self._here()
        if seat in self._met:
            raise RuntimeError("the model calls its trunk twice a step; run it without hydra/launcher=packed")
        seat.inputs = inputs
        seat.wait(Waiting.FORWARD)
        seat.inputs, outputs, seat.outputs = {}, seat.outputs, None
        assert self.backbone is not None
        return outputs if seat in self._met else self.backbone.plain(**inputs)

    def _here(self) -> PackedJob:
        assert self._running is not None
        return self._running

    def _admitted(self) -> bool:
        """Whether a job is left, once those for which there is room have a seat."""
        if self.signals.received is not None:
            self._queue.clear()
        while self._queue and sum(seat.waits is not Waiting.ALONE for seat in self._seats) < self.most:
            self._seats.append(self._queue.popleft())
        return bool(self._seats)

    def _turn(self, seat: PackedJob) -> None:
        seat.process_state.install()
        if seat.injection is not None:
            adapters_of(seat.injection.model).isolate(seat.name)
        told = self.signals.due(seat)
        self._running = self.signals.running = seat
        try:
            seat.resume(told)
        finally:
            self._running = self.signals.running = None
        seat.process_state = ProcessState()
        if not seat.greenlet:  # it has ended, or was told to stop before it began
            self._seats.remove(seat)
            self._gone.append(seat)

    def _together(self) -> None:
        """What all jobs that are left wait for: a pass backward, else one forward, else the others' end."""
        if self._passed is not None:
            self._backward(self._passed)
            self._clear()
            return
        self._clear()
        if calling := [seat for seat in self._seats if seat.waits is Waiting.FORWARD]:
            self._forward(calling)
        elif not self._queue and self._seats:
            self._seats[0].waits = Waiting.TURN

    def _forward(self, calling: list[PackedJob]) -> None:
        for seat in calling:
            seat.waits = Waiting.TURN
        if len(calling) == 1 or self._apart:
            return
        assert self.backbone is not None
        calling[0].process_state.install()  # they are in one autocast, if any
        try:
            outputs, self._passed = self.backbone.forward(
                [s.name for s in calling], [s.inputs for s in calling]
            )
        except (ValueError, torch.OutOfMemoryError) as refusal:
            _log.warning("from here on each job runs its own passes: %s", refusal)
            self._apart = True
            return
        except Exception as error:  # whatever breaks the pass breaks each of its jobs
            for seat in calling:
                seat.fail(error)
            return
        self._met = calling
        for seat, own in zip(calling, outputs, strict=True):
            seat.outputs, seat.most = own, max(seat.most, len(calling))

    def _backward(self, passed: ForwardPass) -> None:
        waiting = [seat for seat in self._met if seat.waits is Waiting.BACKWARD]
        self._passed, self._met = None, []
        assert self.backbone is not None
        try:
            self.backbone.backward(passed)
        except Exception as error:  # as above
            for seat in waiting:
                seat.fail(error)
        for seat in waiting:
            seat.waits = Waiting.TURN

    def _clear(self) -> None:
        """Take the adapters of jobs that have ended out of the model: no pass needs them any more."""
        for seat in self._gone:
            if seat.injection is not None:
                group = adapters_of(seat.injection.model)
                group.show_all()
                group.delete(seat.name)
                seat.injection = None
        if self._gone:
            self._gone = []
            gc.collect()
