"""A pack: jobs that take turns in one process and share the passes of their model's backbone.

Each job runs in a greenlet of its own, the code of a solo run unchanged, until its training calls the
backbone or has gone backward through its head. There it waits. Once every job waits (or has ended), the pack
makes one pass with all batches, and gives each job its part. Exactly one job runs at a time, with its own
process state and as the one adapter in the model.
"""

import gc
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.launchers.packed.backbone import Backbone, ForwardPass
from lora_zoo.launchers.packed.job import PackedJob, Waiting
from lora_zoo.launchers.packed.joining import Inputs
from lora_zoo.launchers.packed.process_state import ProcessState
from lora_zoo.launchers.packed.signals import SharedSignalHandler

_log = logging.getLogger("lora_zoo")


class Pack:
    """Runs jobs on one backbone, at most `most` side by side; one that ends makes room for the next."""

    def __init__(self, signals: SharedSignalHandler, most: int) -> None:
        self.signals, self.most = signals, most
        self.backbone: Backbone | None = None
        self._initial = ProcessState()
        self._queue: deque[PackedJob] = deque()
        self._jobs: list[PackedJob] = []
        self._ended: list[PackedJob] = []
        self._running: PackedJob | None = None
        self._passed: ForwardPass | None = None
        self._sharing: list[PackedJob] = []
        """The jobs of the shared pass that has gone forward and not yet backward."""
        self._separate = False

    def run(self, bodies: Sequence[Callable[[PackedJob], Any]]) -> list[PackedJob]:
        """Run every job to its end and return them all. An error of one does not touch the others."""
        every = [PackedJob(f"job{number}", body, self._initial) for number, body in enumerate(bodies)]
        self._queue = deque(every)
        try:
            while self._admit():
                self.signals.new_round()
                for job in [job for job in self._jobs if job.waits is Waiting.TURN]:
                    self._take_turn(job)
                self._serve()
        finally:
            self._initial.install()
            if self.backbone is not None:
                self.backbone.unroute()
        return every

    def share(self, backbone: Backbone) -> None:
        """Have jobs share the passes of `backbone` from now on."""
        self.backbone = backbone
        backbone.route(self._call)

    def backward(self) -> None:
        """Let the running job, whose head has gone backward, wait until the backbone has, too."""
        if self._current in self._sharing:
            self._current.wait(Waiting.BACKWARD)

    def run_alone(self, reason: str) -> None:
        """Let the running job go on once all others have ended."""
        self._current.reason = reason
        self._current.wait(Waiting.ALONE)

    def _call(self, inputs: Inputs) -> Any:
        """Answer a training call of the backbone by the running job with its part of a shared pass."""
        job = self._current
        if job in self._sharing:
            raise RuntimeError(
                "the model calls its backbone twice a step; run it without hydra/launcher=packed"
            )
        job.inputs = inputs
        job.wait(Waiting.FORWARD)
        job.inputs, outputs, job.outputs = {}, job.outputs, None
        assert self.backbone is not None
        return outputs if job in self._sharing else self.backbone.plain(**inputs)

    @property
    def _current(self) -> PackedJob:
        assert self._running is not None
        return self._running

    def _admit(self) -> bool:
        """Admit the jobs for which there is room; False if none is left."""
        if self.signals.received is not None:
            self._queue.clear()
        while self._queue and sum(job.waits is not Waiting.ALONE for job in self._jobs) < self.most:
            self._jobs.append(self._queue.popleft())
        return bool(self._jobs)

    def _take_turn(self, job: PackedJob) -> None:
        job.process_state.install()
        if job.injection is not None:
            adapters_of(job.injection.model).isolate(job.name)
        ends = self.signals.due(job)
        self._running = self.signals.running = job
        try:
            job.resume(ends)
        finally:
            self._running = self.signals.running = None
        job.process_state = ProcessState()
        if not job.greenlet:  # it has ended, or was stopped before it began
            self._jobs.remove(job)
            self._ended.append(job)

    def _serve(self) -> None:
        """Make the pass that the jobs wait for: one backward, else one forward; else let one run alone."""
        if self._passed is not None:
            self._backward(self._passed)
            self._delete_ended()
            return
        self._delete_ended()
        if calling := [job for job in self._jobs if job.waits is Waiting.FORWARD]:
            self._forward(calling)
        elif not self._queue and self._jobs:
            self._jobs[0].waits = Waiting.TURN

    def _forward(self, calling: list[PackedJob]) -> None:
        for job in calling:
            job.waits = Waiting.TURN
        if len(calling) == 1 or self._separate:
            return
        assert self.backbone is not None
        calling[0].process_state.install()  # they are in one autocast, if any
        names, batches = [job.name for job in calling], [job.inputs for job in calling]
        try:
            outputs, self._passed = self.backbone.forward(names, batches)
        except (ValueError, torch.OutOfMemoryError) as refusal:
            _log.warning("from here on each job runs its own passes: %s", refusal)
            self._separate = True
            return
        except Exception as error:  # whatever breaks the pass breaks each of its jobs
            for job in calling:
                job.fail(error)
            return
        self._sharing = calling
        for job, own in zip(calling, outputs, strict=True):
            job.outputs, job.most = own, max(job.most, len(calling))

    def _backward(self, passed: ForwardPass) -> None:
        waiting = [job for job in self._sharing if job.waits is Waiting.BACKWARD]
        self._passed, self._sharing = None, []
        assert self.backbone is not None
        for job in waiting:
            job.waits = Waiting.TURN
        try:
            self.backbone.backward(passed)
        except Exception as error:  # as above
            for job in waiting:
                job.fail(error)

    def _delete_ended(self) -> None:
        """Take the adapters of jobs that have ended out of the model: no pass needs them any more."""
        for job in self._ended:
            if job.injection is not None:
                group = adapters_of(job.injection.model)
                group.show_all()
                group.delete(job.name)
                job.injection = None
        if self._ended:
            self._ended = []
            gc.collect()
