"""What happens around the steps of a training loop: clock, progress bar, a method's hooks, checkpoints."""

import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_zoo.core import hooks
from lora_zoo.inject.injection import Injection

if TYPE_CHECKING:
    pass


_log = logging.getLogger("lora_zoo")


class Progress(TrainerCallback):
    """How a run shows its steps; this one does not: several runs side by side have one terminal."""

    def __init__(self, name: str, console: Console) -> None: ...

    def close(self) -> None: ...


class ProgressBar(Progress):
    """A bar that moves."""

    def __init__(self, name: str, console: Console) -> None:
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.row = self.bar.add_task(name, loss="-", total=None, start=False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.start()
        self.bar.start_task(self.row)
        self.bar.update(self.row, total=state.max_steps, completed=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.update(self.row, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.bar.update(self.row, loss=f"{logs['loss']:.3g}")

    def close(self) -> None:
        self.bar.stop()


class LogCallback(TrainerCallback):
    """Writes to the log, as it comes, what would otherwise be lost with a process that is killed."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        _log.info("training from step %d to %d", state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        said = ", ".join(f"{name} {value:.6g}" for name, value in (logs or {}).items() if name != "epoch")
        _log.info("step %d: %s", state.global_step, said)


class HookCallback(TrainerCallback):
    """Calls the method where the Trainer has reached its moment."""

    def __init__(self, injection: Injection) -> None:
        self.injection = injection

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.injection.hooks.to(args.device)
        self.injection.hooks.on_train_begin(state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.injection.hooks.on_step_end(hooks.Progress(state.global_step + 1, state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.injection.hooks.on_train_end()


class StepTimer(TrainerCallback):
    """Seconds of each optimiser step: no data preparation, evaluation, saving or generation among them."""

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
        ordered = sorted(self.seconds)
        total = sum(ordered)
        middle = ordered[len(ordered) // 2]
        return {
            "steps": len(ordered),
            "train": total,
            "step_median": middle,
            "step_mean": total / len(ordered),
        }


class TimedCheckpoints(TrainerCallback):
    """A checkpoint whenever so many minutes have passed since the last one."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.last = 60 * minutes, time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= time.monotonic() - self.last >= self.seconds

    def on_save(self, *_: Any, **__: Any) -> None:
        self.last = time.monotonic()
