"""Seconds of a run's stages and of its optimiser steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from lora_zoo.runs.record import Record

TRAINING = "train_wall"
"""The stage of which the processor's seconds are kept as well: they tell what else the machine did."""


class StageTimer:
    """Seconds of a run's stages, kept in its record; stages of an earlier process are kept as well."""

    def __init__(self, record: Record) -> None:
        self.record, self.seconds = record, dict[str, float](record.content.get("timings", {}))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began, worked = time.perf_counter(), time.process_time()
        yield
        self.update({name: time.perf_counter() - began})
        if name == TRAINING:
            self.update({"train_cpu": time.process_time() - worked})

    def update(self, seconds: dict[str, float]) -> None:
        self.seconds |= seconds
        self.record.update(timings=dict(self.seconds))


class StepTimer(TrainerCallback):
    """Seconds of each optimiser step; no data preparation, evaluation, saving or generation among them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)

    def summary(self) -> dict[str, float]:
        if not self.seconds:
            return {"steps": 0}
        steps, total = len(self.seconds), sum(self.seconds)
        median = sorted(self.seconds)[steps // 2]
        return {"steps": steps, "train": total, "step_median": median, "step_mean": total / steps}
