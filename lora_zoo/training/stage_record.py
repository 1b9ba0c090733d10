"""One stage of a run: its specification, and its steps and record told as the run's own."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from transformers import TrainingArguments

from lora_zoo.config.spec import RunSpec, needs_of
from lora_zoo.core.program import ProgramContext, Stage
from lora_zoo.core.seeding import derived_seed
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.record import Record, made, plain
from lora_zoo.runs.redact import redacted
from lora_zoo.training.ranks import joined
from lora_zoo.training.timing import TRAINING

STAGES = "stages"
"""The folder, within a run's, of its stages' folders; the key of its record that lists them."""


def program_context(
    spec: RunSpec, steps: int, examples: Callable[[], Iterator[Mapping[str, Tensor]]]
) -> ProgramContext:
    """The context in which a run's program decides on its stages."""
    return ProgramContext(steps, spec.variant.name, spec.hyperparameters, spec.settings.seed, examples)


def stage_spec(spec: RunSpec, stage: Stage, number: int) -> RunSpec:
    """The specification of a run's stage: its length, seeds and variant in the place of the run's.

    The first stage has the run's own order of data, a later one an order that `data_seed` draws for it.
    ValueError for a variant that trains on parts of the data where what it learns goes on.
    """
    settings, variant = spec.settings, spec.variant
    own = settings.variant
    if stage.variant not in (None, own["name"]):
        variant, own = VARIANTS.find(str(stage.variant)), {"name": stage.variant}
    later = derived_seed("stage", settings.data_seed, number) % 2**32
    settings = replace(
        settings,
        steps=stage.steps,
        epochs=None,
        lr=stage.rate * settings.lr,
        variant=own,
        seed=stage.inject.get("seed", settings.seed),
        data_seed=later if number > 1 else settings.data_seed,
    )
    needs = needs_of(variant, stage.inject.get("init", settings.init))
    found = replace(spec, settings=settings, variant=variant, needs=needs)
    if found.parts and (stage.then == "settle" or stage.start is not None):
        who, text = (
            settings.program["name"],
            "trains on parts of the data, which each stage would divide anew",
        )
        raise ValueError(f"program {who}: {variant.name} {text}; run it without a program")
    return found


def total_steps(arguments: TrainingArguments, examples: int) -> int:
    """The optimiser steps of a run over so many training examples."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    count = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = count(examples / arguments.train_batch_size)
    an_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * an_epoch)


def summed(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The timings of a run from its stages' entries; the median step is that of the longest stage."""
    known = [stage["timings"] for stage in stages if stage.get("timings", {}).get("steps")]
    if not known:
        return {"steps": 0}
    sums = {key: sum(own.get(key, 0) for own in known) for key in ("steps", "train", TRAINING, "train_cpu")}
    median = max(known, key=lambda own: own["steps"])["step_median"]
    return sums | {"step_median": median, "step_mean": sums["train"] / sums["steps"]}


class RunPosition(NamedTuple):
    """The place of a stage in its run: the steps and epochs before it, and the run's steps in all."""

    steps: int = 0
    epochs: float = 0.0
    total: int = 0

    def shifted(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A log entry of the stage as one of the run."""
        more = {"step": self.steps, "epoch": self.epochs}
        return {key: value + more.get(key, 0) if key in more else value for key, value in entry.items()}


class StageRecord(Record):
    """One entry of the run's `stages`. Its history, ranks, skipped steps and resumption are the run's.

    Steps are counted from the stage's own first one here, in the run's record from the run's.
    """

    def __init__(self, run: Record, number: int, before: int, total: int) -> None:
        self.run, self.number = run, number
        self.folder = made(run.folder / STAGES / str(number))
        known = run.content.get(STAGES, [])[number - 1 : number]
        history = run.content.get("history", [])
        start, end = known[0]["logs"] if known else [len(history)] * 2
        self.position = RunPosition(before, history[start - 1].get("epoch", 0.0) if start else 0.0, total)
        self._earlier, self._ranks = history[:start], run.content.get("ranks", {})
        self._skipped = [step for step in run.content.get("skipped", []) if step <= before]
        self.content = (known[0] if known else {"logs": [start, end]}) | {"history": history[start:end]}
        self.content["name"] = f"{run.content['name']}, stage {number}"

    def update(self, **content: Any) -> None:
        told, position = redacted(plain(content)), self.position
        of_run: dict[str, Any] = {key: told.pop(key) for key in ("resumed", "parameters") if key in told}
        if "history" in told:
            own = told["history"] = [position.shifted(entry) for entry in told["history"]]
            of_run["history"] = [*self._earlier, *own]
            told["logs"] = [len(self._earlier), len(of_run["history"])]
        if "ranks" in told:
            of_run["ranks"] = joined(self._ranks, told.pop("ranks"), position.steps)
        if "skipped" in told:
            of_run["skipped"] = self._skipped + [step + position.steps for step in told["skipped"]]
        self.content |= told
        entry = {key: value for key, value in self.content.items() if key not in ("name", "history")}
        stages, here = self.run.content.get(STAGES, []), self.number - 1
        self.run.update(**of_run, stages=[*stages[:here], entry, *stages[here + 1 :]])


class RunSteps:
    """Trainer callbacks that are told of a stage's steps as steps of its run."""

    def __init__(self, callbacks: Sequence[Any], position: RunPosition) -> None:
        self.callbacks, self.position = callbacks, position

    def __getattr__(self, event: str) -> Any:
        if not event.startswith("on_"):
            raise AttributeError(event)
        return partial(self._tell, event)

    def _tell(self, event: str, args: Any, state: Any, control: Any, **given: Any) -> None:
        seen = copy.copy(state)
        seen.global_step, seen.max_steps = state.global_step + self.position.steps, self.position.total
        given |= {key: self.position.shifted(given[key]) for key in given.keys() & {"logs"}}
        for callback in self.callbacks:
            getattr(callback, event)(args, seen, control, **given)
