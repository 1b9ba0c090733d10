"""Replay: a share of what earlier runs were trained on, beside a run's own examples."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lora_zoo.config.schema import Settings
from lora_zoo.core.seeding import generator
from lora_zoo.runs.identity import replayed_runs
from lora_zoo.training.resources import TaskData
from lora_zoo.training.run_data import settings_of_run


def with_replay(
    data: TaskData, settings: Settings, load: Callable[[Settings], TaskData]
) -> tuple[TaskData, dict[str, int]]:
    """The run's data and behind them the share `replay` of those of the runs `start_from` and `prior`.

    These are training examples, drawn by `data_seed`; also returned is how many of each run there are.
    ValueError for a folder that is no run's, and for a task whose examples are of another kind.
    """
    more, found = list(data.encoded), dict[str, int]()
    for source, run in replayed_runs(vars(settings)).items():
        earlier = settings_of_run(run)
        old = load(replace(earlier, model=settings.model, eval_splits=[]))
        if _form(old) != _form(data):
            kinds = f"{earlier.task.name} are of another kind than those of {settings.task.name}"
            raise ValueError(f"replay={settings.replay}: the examples of {source}, {kinds}")
        order = torch.randperm(len(old.encoded), generator=generator("replay", settings.data_seed))
        drawn = order[: round(settings.replay * len(order))].tolist()
        more += [old.encoded[number] for number in drawn]
        found[source] = len(drawn)
    return (data.with_examples(more) if found else data), found


def _form(data: TaskData) -> tuple[Any, ...]:
    """The task's type, its head and the keys of its examples, which are alike in one batch."""
    return data.kind.task.type, data.kind.head(), {*data.encoded[0]}
