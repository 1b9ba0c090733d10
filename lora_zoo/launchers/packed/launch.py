"""A sweep's jobs, pack by pack: the work of Hydra's launcher `packed`."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.console import Console

from lora_zoo.config.spec import RunSpec
from lora_zoo.launchers.packed.grouping import Group, groups
from lora_zoo.launchers.packed.job import PackedJob
from lora_zoo.launchers.packed.resources import PackedResources, SharedBase
from lora_zoo.launchers.packed.scheduler import Pack
from lora_zoo.launchers.packed.signals import SharedSignalHandler
from lora_zoo.training.resources import process_as_it_was

Launch = Callable[..., Any]
"""Runs one job: its number, and what it shares with others by keyword; returns what Hydra wants of it."""


def launch(specs: Sequence[RunSpec | None], start: Launch, most: int) -> list[Any]:
    """Run every job and return what each gave, in order. Raises Stopped where the process is told to stop."""
    console, given = Console(), dict[int, Any]()
    for group in groups(specs):
        if group.reason or len(group.jobs) == 1 or torch.cuda.device_count() > 1:
            given |= {number: start(number) for number in group.jobs}
            continue
        text = f"packed: {len(group.jobs)} runs on one base, at most {most} side by side"
        console.print(text, highlight=False, soft_wrap=True)
        given |= _packed(group, start, most)
    return [given[number] for number in range(len(specs))]


def _packed(group: Group, start: Launch, most: int) -> dict[int, Any]:
    signals = SharedSignalHandler()
    with process_as_it_was(), signals.listening(), _still():
        pack, base = Pack(signals, most), SharedBase()

        def body(number: int, job: PackedJob) -> Any:
            return start(number, resources=PackedResources(pack, job, base))

        jobs = pack.run([partial(body, number) for number in group.jobs])
    for job in jobs:
        if job.error is not None:
            raise job.error
    return dict(zip(group.jobs, (job.outcome for job in jobs), strict=True))


@contextmanager
def _still() -> Iterator[None]:
    """Inside, progress bars do not move: several would write over each other."""
    before = os.environ.get("TTY_INTERACTIVE")
    os.environ["TTY_INTERACTIVE"] = "0"
    try:
        yield
    finally:
        del os.environ["TTY_INTERACTIVE"]
        os.environ |= {} if before is None else {"TTY_INTERACTIVE": before}
