"""A run that several processes train: their parts of a batch, and that their models stay alike."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from lora_zoo.core.processes import current
from lora_zoo.core.seeding import derived_seed
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.inject import Injection
from lora_zoo.models.snapshot import can_be_shared, digest
from lora_zoo.runs.record import Record
from lora_zoo.training.state import TrainState

Collator = Callable[[list[Any]], dict[str, Any]]


class Borrowed(dict[str, Any]):
    """A batch of another process, of which nothing is learned: each process makes, and counts, every pass."""


def of_part(collate: Collator) -> Collator:
    """The collator of this process's part of a batch: of no row it makes one that is Borrowed."""
    if current().size == 1:
        return collate

    def of_own(rows: list[Any]) -> dict[str, Any]:
        own = list(current().part(rows))
        return collate(own) if own else Borrowed(collate(rows[:1]))

    return of_own


def divide_base(injection: Injection) -> None:
    """Have the processes divide the frozen weights of the base (FSDP2), each block by itself.

    Adapters, and whatever trains, each process keeps whole. A pass gathers the weights of a block, exactly,
    and drops them after it. ValueError where nothing is frozen, for codes, and for blocks that are unknown
    or skipped.
    """
    model, trained = injection.model, {id(p) for p in injection.parameters()}
    frozen = {p for p in base_parameters(model).values() if not p.requires_grad and id(p) not in trained}
    if not frozen:
        name = injection.variant.name
        raise ValueError(
            f"fsdp=true divides the frozen base, and variant={name} trains all of it; use fsdp=false"
        )
    if not can_be_shared(model):
        raise ValueError(
            "fsdp=true: the base holds codes or other tensors that are not divided; use fsdp=false"
        )
    blocks = _blocks(model)
    check_same_base(model)  # else each process would keep a part of another base
    current().divide(model, reversed(blocks), {*model.parameters()} - frozen)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model. ValueError for one that says none, or that skips some of them at random."""
    for module in model.modules():
        for name, share in vars(getattr(module, "config", module)).items():
            if name.endswith("layerdrop") and share:
                raise ValueError(
                    f"fsdp=true: with {name}={share} each process skips other blocks, which all have to "
                    f"gather; set {name} to 0 in the model's config.json, or use fsdp=false"
                )
    classes = getattr(model, "_no_split_modules", None) or ()
    blocks = [module for module in model.modules() if type(module).__name__ in classes]
    if not blocks:
        raise ValueError(
            f"fsdp=true: {type(model).__name__} does not say what its blocks are; use fsdp=false"
        )
    return blocks


def check_same_base(model: nn.Module, **more: torch.Tensor) -> None:
    """RuntimeError where processes have other numbers in their model, as far as it holds plain tensors."""
    if can_be_shared(model):
        more["the model"] = torch.frombuffer(bytearray.fromhex(digest(model)), dtype=torch.uint8)
    current().check_alike(more, "where training begins")


class Alike(TrainerCallback):
    """Checks that all processes have the same model where training begins and ends: RuntimeError if not.

    torch's own random stream, of which the base model's dropout draws, is another one in each process: that
    of the one that leads is in its checkpoints, that of another begins anew at each step.
    """

    def __init__(self, train_state: TrainState) -> None:
        self.train_state = train_state

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        check_same_base(self.train_state.injection.model, **self.train_state.tensors())

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
