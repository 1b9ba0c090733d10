"""Retention of each run's own task in a model that is composed of several runs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lora_zoo import metrics
from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.train_eval import in_mode
from lora_zoo.runs.record import RESULT
from lora_zoo.training.evaluation import values_of
from lora_zoo.training.resources import TaskData
from lora_zoo.training.run_data import settings_of_run


class Retained(NamedTuple):
    """A run's metric on its own task: of its adapter alone, as recorded, and of the composed model."""

    run: str
    task: str
    metric: str
    alone: float
    composed: float

    def __str__(self) -> str:
        return f"{self.task} ({self.run}): {self.metric} {self.alone:.4g} alone, {self.composed:.4g} composed"


class RunTask:
    """A finished run's task: its data, its metric that counts, and what the run reached on a split.

    ValueError for a run that was not judged on the split.
    """

    def __init__(self, name: str, run: Path, split: str) -> None:
        settings = settings_of_run(run)
        record: Any = read_json(run / RESULT)
        metric = record.get("metric")
        reached = record.get("metrics", {}).get(split, {})
        if metric not in reached:
            judged = ", ".join(record.get("metrics", {})) or "no split"
            raise ValueError(f"{run} was judged on {judged}, not on {split}")
        self.name, self.split, self.metric, self.alone = name, split, metric, float(reached[metric])
        self.task = settings.task.name
        self.data = TaskData(replace(settings, eval_splits=[split]))
        counts = settings.task.metrics[0]
        self.metrics = {counts: metrics.load(counts)}

    def retained(self, model: nn.Module) -> Retained:
        """Judge `model`, with whatever adapters are active."""
        kind = self.data.kind
        with in_mode(model, training=False):
            outcomes = kind.outcomes(model, self.data.splits[self.split])
        values = values_of(kind, self.metrics, outcomes, self.split)
        return Retained(self.name, self.task, self.metric, self.alone, float(values[self.metric]))


def tasks_of(runs: Mapping[str, Path], split: str) -> list[RunTask]:
    """The tasks of the runs, by the names of their adapters."""
    return [RunTask(name, run, split) for name, run in runs.items()]
