"""Checkpoints on signals and by the clock."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl

from lora_zoo.core.processes import current
from lora_zoo.training.signals import SignalHandler
from lora_zoo.training.state import TrainState


class StopOnSignal(TrainerCallback):
    """Ends training after the current step, with a checkpoint, once a signal was received."""

    def __init__(self, train_state: TrainState, signals: SignalHandler) -> None:
        self.train_state, self.signals = train_state, signals

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if self.signals.stopping:
            self.train_state.evaluation_pending = control.should_evaluate  # the next process makes up for it
            control.should_evaluate, control.should_save, control.should_training_stop = False, True, True


class TimedCheckpoints(TrainerCallback):
    """A checkpoint whenever `minutes` have passed since the last one."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.last = 60 * minutes, time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        control.should_save |= bool(current().greatest(int(time.monotonic() - self.last >= self.seconds)))

    def on_save(self, *_: Any, **__: Any) -> None:
        self.last = time.monotonic()
