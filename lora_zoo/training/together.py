"""A run that several processes train: their parts of a batch, and that their models stay alike."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from lora_zoo.core.processes import current
from lora_zoo.core.seeding import derived_seed
from lora_zoo.models.snapshot import can_be_shared, digest
from lora_zoo.runs.record import Record
from lora_zoo.training.state import TrainState

Collator = Callable[[list[Any]], dict[str, Any]]


def of_part(collate: Collator) -> Collator:
    """The collator of this process's part of a batch: of no row it makes {}."""
    if current().size == 1:
        return collate
    return lambda rows: collate(list(own)) if (own := current().part(rows)) else {}


class Alike(TrainerCallback):
    """Checks that all processes have the same model where training begins and ends: RuntimeError if not.

    torch's own random stream, of which the base model's dropout draws, is another one in each process: that
    of the one that leads is in its checkpoints, that of another begins anew at each step.
    """

    def __init__(self, train_state: TrainState) -> None:
        self.train_state = train_state

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        tensors, model = self.train_state.tensors(), self.train_state.injection.model
        if can_be_shared(model):
            tensors["the model"] = torch.frombuffer(bytearray.fromhex(digest(model)), dtype=torch.uint8)
        current().check_alike(tensors, "where training begins")

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if rank := current().rank:
            torch.manual_seed(derived_seed("process", args.seed, rank, state.global_step))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        current().check_alike(self.train_state.tensors(), "where training ends")


class UnwrittenRecord(Record):
    """The record of a run in a process that does not lead: it is known there, and not written."""

    def __init__(self, folder: Any, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, dict(content)

    def update(self, **content: Any) -> None:
        self.content |= content

    def examples(self, split: str, outcomes: list[dict[str, Any]]) -> None:
        pass
