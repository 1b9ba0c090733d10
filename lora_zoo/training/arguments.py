"""transformers.TrainingArguments from the settings: flat keys where they exist, `trainer.` keys elsewhere."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from lora_zoo.adapters.registry import unknown
from lora_zoo.configuration.settings import Settings

_FLAT = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "seed": "seed",
    "data_seed": "data_seed",
    "output_dir": "out",
    "report_to": "tracking",
}


def training_arguments(settings: Settings, folder: Path, report_to: list[str]) -> TrainingArguments:
    """Raises ValueError for a `trainer.` key that TrainingArguments lacks, or that a flat key sets."""
    given = dict(settings.trainer)
    known = [f.name for f in fields(TrainingArguments) if f.init]
    for name in given:
        if name in _FLAT:
            raise ValueError(f"trainer.{name} is set by the key {_FLAT[name]}; use {_FLAT[name]}=…")
        if name not in known:
            raise ValueError(unknown("key of trainer", name, known))
    cuda = torch.cuda.is_available()
    ours = {
        "output_dir": str(folder / "checkpoints"),
        "learning_rate": settings.lr,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.task.eval_batch_size,
        "seed": settings.seed,
        "data_seed": settings.data_seed,
        "report_to": report_to,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": cuda,
        "logging_nan_inf_filter": False,  # a loss that is no number is a finding
        **_length(settings),
        **_every("eval", given.pop("eval_steps", 0)),
        **_every("save", given.pop("save_steps", 0)),
    }
    try:
        return TrainingArguments(**(ours | given))
    except (TypeError, ValueError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error


def _length(settings: Settings) -> dict[str, Any]:
    steps, epochs = settings.steps, settings.epochs
    if steps is None and epochs is None:
        steps, epochs = settings.task.steps, settings.task.epochs
    if steps is not None:
        return {"max_steps": steps}
    if epochs is None:
        raise ValueError(f"task {settings.task.name} has no default length; give steps=… or epochs=…")
    return {"num_train_epochs": epochs}


def _every(what: str, steps: int) -> dict[str, Any]:
    return {f"{what}_strategy": "steps", f"{what}_steps": steps} if steps else {f"{what}_strategy": "no"}
