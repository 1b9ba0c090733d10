"""A finished run's own examples, read again from its record: for what looks at data after training."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from lora_zoo.config.aliases import modern
from lora_zoo.config.schema import Settings
from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.seeding import generator
from lora_zoo.runs.record import RESULT
from lora_zoo.tasks.base import on_device
from lora_zoo.training.resources import TaskData


def settings_of_run(run: Path) -> Settings:
    """The settings in the run's record; no code that they name is run. ValueError where there are none."""
    if not (run / RESULT).is_file():
        raise ValueError(f"{run} has no {RESULT}: only a run's folder says on which data it was trained")
    record = read_json(run / RESULT)
    config = record.get("config") if isinstance(record, dict) else None
    try:
        known = modern(config or {})
        known = {field.name: known[field.name] for field in fields(Settings) if field.name in known}
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), known))
    except (OmegaConfBaseException, TypeError, AttributeError) as error:
        raise ValueError(f"{run / RESULT}: its settings cannot be read: {error}") from error
    if not config:
        raise ValueError(f"{run / RESULT} holds no settings")
    return replace(settings, model=replace(settings.model, trust_remote_code=False))


def examples_of_run(
    run: Path, model: nn.Module, *, split: str, number: int, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """At most `number` examples of a split as they are trained on, each by itself, in an order of `seed`.

    ValueError for a run without that split.
    """
    settings = settings_of_run(run)
    data = TaskData(replace(settings, eval_splits=[*{*settings.eval_splits, *({split} - {"train"})}]))
    if split not in data.splits:
        raise ValueError(f"the task of {run} has no {split} split")
    rows = data.splits[split]
    order = torch.randperm(len(rows), generator=generator("examples", split, seed))[:number].tolist()
    for row in order:
        yield on_device(data.kind.collate([data.kind.encode(rows[row])]), model)
