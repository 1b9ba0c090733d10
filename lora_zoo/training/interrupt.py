"""Checkpoints on signals and by the clock."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_zoo.training.signals import SignalHandler

if TYPE_CHECKING:
    from lora_zoo.training.trainer import ZooTrainer


class Interrupt(TrainerCallback):
    """Ends training after the step in hand, with a checkpoint, once the process is told to stop."""

    def __init__(self, trainer: "ZooTrainer", signals: SignalHandler) -> None:
        self.trainer, self.signals = trainer, signals

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.signals.asked is not None:
            self.trainer.owed = control.should_evaluate  # the next process makes up for it
            control.should_evaluate, control.should_save, control.should_training_stop = False, True, True
