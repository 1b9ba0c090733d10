"""Trainer callbacks: progress bar, log, an adapted model's hooks."""

import logging
from typing import Any

import torch
from rich import progress
from rich.console import Console
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, TrainingArguments

from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import Injection

_log = logging.getLogger("lora_zoo")


class ProgressBar(TrainerCallback):
    """The bar of a run's steps; off where several processes have one terminal."""

    def __init__(self, name: str, console: Console, *, disable: bool = False) -> None:
        self.bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("loss {task.fields[loss]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            disable=disable,
        )
        self.row = self.bar.add_task(name, loss="-", total=None, start=False)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.bar.start()
        self.bar.start_task(self.row)
        self.bar.update(self.row, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.bar.update(self.row, completed=state.global_step)

    def on_log(self, *_: Any, **given: Any) -> None:
        if "loss" in given["logs"]:
            self.bar.update(self.row, loss=f"{given['logs']['loss']:.3g}")

    def close(self) -> None:
        if not self.bar.disable:  # `stop` prints an empty line
            self.bar.stop()


class LogCallback(TrainerCallback):
    """Writes each logged value to run.log at once, where a kill cannot lose it."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        _log.info("training from step %d to %d", state.global_step, state.max_steps)

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **given: Any) -> None:
        logs = given["logs"].items()
        values = ", ".join(f"{name} {value:.6g}" for name, value in logs if name != "epoch")
        _log.info("step %d: %s", state.global_step, values)


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own; a run that goes on from a checkpoint goes on counting."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **more: Any) -> None:
        super().on_train_begin(args, state, *rest, **more)
        for name, value in state.stateful_callbacks[type(self).__name__]["attributes"].items():
            setattr(self, name, value)

    @property
    def stopped(self) -> bool:
        return bool(self.early_stopping_patience_counter >= self.early_stopping_patience)


def progress_of(state: TrainerState, args: TrainingArguments, optimizer: torch.optim.Optimizer) -> Progress:
    """The step in hand as hooks see it; the schedule acts on all groups alike."""
    group = optimizer.param_groups[0]
    first = group.get("initial_lr", args.learning_rate)
    return Progress(state.global_step + 1, state.max_steps, group["lr"] / first if first else 1.0)


class HookCallback(TrainerCallback):
    """Calls an injection's hooks at the Trainer's events."""

    def __init__(self, injection: Injection) -> None:
        self.hooks = injection.hooks

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.hooks.to(args.device)
        self.hooks.on_train_begin(state.max_steps)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **given: Any) -> None:
        self.hooks.on_step_end(progress_of(state, args, given["optimizer"]))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.hooks.on_train_end()
