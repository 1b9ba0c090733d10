"""The execution of a stage program: a training for each of its stages, in one model, under one record.

A run's folder holds `stages/K/` for its K-th stage: checkpoints, and `adapter/` once it is trained. A stage
that an earlier process has finished is loaded; one under way goes on from its checkpoint, to the bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainingArguments

from lora_zoo.config.spec import RunSpec
from lora_zoo.core.program import Stage, started
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import Injection
from lora_zoo.runs.record import Record
from lora_zoo.runs.tracking import Tracker
from lora_zoo.training.arguments import training_arguments
from lora_zoo.training.calibration import examples, has_trained
from lora_zoo.training.divergence import Diverged
from lora_zoo.training.evaluation import Evaluator
from lora_zoo.training.folding import effective, fold, in_full
from lora_zoo.training.handover import FILE, Moments, unflat
from lora_zoo.training.resources import TaskData
from lora_zoo.training.session import RunContext, TrainingSession, keep_adapter
from lora_zoo.training.settling import accumulated_rank, refuse_unsettled, settled
from lora_zoo.training.stage_record import (
    STAGES,
    StageRecord,
    program_context,
    stage_spec,
    summed,
    total_steps,
)
from lora_zoo.training.timing import StageTimer
from lora_zoo.training.trainer import ZooTrainer

SETTLED = "settled"
"""The name, in the model, of the adapter that holds what earlier stages have learned."""
Inject = Callable[..., Injection]
"""From a specification, a record, further arguments of `inject` and `trained` to an adapter."""


class StagedTraining:
    """Trains the stages of a run's program, with the attributes of a `TrainingSession`.

    `injection` is that of the stage in hand and, after `run`, the run's. ValueError for a program's own
    hyperparameters, and for a variant that cannot be what a stage asks for.
    """

    evaluator: Evaluator
    session: TrainingSession

    def __init__(
        self,
        spec: RunSpec,
        record: Record,
        context: RunContext,
        *,
        inject: Inject,
        data: TaskData,
        model: nn.Module,
        about: dict[str, Any],
    ) -> None:
        self.spec, self.record, self.context, self.about = spec, record, context, about
        self.inject, self.model, self.who = inject, model, f"program {spec.settings.program['name']}"
        arguments = training_arguments(spec.settings, record.folder)
        self.total = total_steps(arguments, len(data.encoded))
        self.number, self.before = 0, 0
        self.in_full: dict[str, Tensor] = {}
        self.base: dict[str, Tensor] | None = None
        """The base's own values, once something is folded into it."""
        self.resumes = "resumed" in record.content
        draw = partial(examples, spec, model, data)
        self.program = started(spec.settings.program, program_context(spec, self.total, draw))
        self.stage = next(self.program)
        self._begin()
        self.finished = self.session.finished

    @property
    def injection(self) -> Injection:
        return self.session.injection

    @property
    def trainer(self) -> ZooTrainer | None:
        return self.session.trainer

    @property
    def underway(self) -> bool:
        return self.number > 1 or self.session.underway

    def prepare(self, evaluator: Evaluator, _: TrainingArguments) -> None:
        """Prepare the first stage, by arguments of its own."""
        self.evaluator = evaluator
        self._prepare()

    def run(self, tracker: Tracker, timer: StageTimer) -> None:
        """Train every stage; the run's adapter is then alone in the model, and in the run's folder."""
        while self._train(tracker, timer):
            self._begin()
            self._prepare()
        self.session.injection = self._whole()
        self.evaluator.injection = self.injection
        for file in self.record.folder.glob(f"{STAGES}/*/{FILE}"):
            file.unlink()
        keep_adapter(self.injection, self.record, self.about)

    def _whole(self) -> Injection:
        """Put the run's adapter, with all that was settled, in the place of the last stage's."""
        adapters, last, seed = adapters_of(self.model), self.injection, self.spec.settings.seed
        parts = [adapters[SETTLED], last] if SETTLED in adapters else [last]
        if rank := accumulated_rank(parts):
            self.session.record.update(accumulated=rank)
        if self.base is not None:
            values = effective(self.model)
            fold(self.model, self.base)
            return in_full(self.model, values, last.name, seed)
        return settled(self.model, parts, last.name, seed, in_full=last) if parts[1:] else last

    def _begin(self) -> None:
        """Put the adapter of the stage in hand into the model, beside what is settled."""
        stage, self.number = self.stage, self.number + 1
        spec = stage_spec(self.spec, stage, self.number)
        self._check(stage, spec)
        record = StageRecord(self.record, self.number, self.before, self.total)
        asked = stage.arguments
        finished, adapters = has_trained(record), adapters_of(self.model)
        injection = self.inject(spec, record, asked, trained=finished)
        adapters.activate(*(name for name in (SETTLED, injection.name) if name in adapters))
        if SETTLED in adapters:
            injection.hooks.show_prior(SETTLED, adapters[SETTLED].adapters)
        if not finished:
            self._go_on(injection)
        self.session = TrainingSession(
            spec.settings,
            record,
            self.context,
            injection,
            self.about,
            finished=finished,
            position=record.position,
            stage=stage,
            moments=self._moments(),
        )
        if self.resumes and not self.session.finished:
            record.content["resumed"], self.resumes = self.record.content["resumed"], False
        about: dict[str, Any] = {"variant": spec.variant.name, "steps": stage.steps, "then": stage.then}
        about |= {"group": stage.name} if stage.name else {}
        about |= {"inject": asked, "rewarm": stage.rewarm, "rate": stage.rate}
        counts = {"adapted": len(injection), "trainable": injection.trainable()}
        record.update(**about, **counts, seed=spec.settings.seed)

    def _moments(self) -> Moments:
        """The moments that the stage before hands on; {} where it hands on none."""
        file = self.record.folder / STAGES / str(self.number - 1) / FILE
        return unflat(load_file(file)) if file.is_file() else {}

    def _check(self, stage: Stage, spec: RunSpec) -> None:
        left = self.total - self.before
        if not 1 <= stage.steps <= left or (stage.then == "keep" and stage.steps != left):
            text = f"stage {self.number} takes {stage.steps} steps, where {left} of {self.total} are left"
            raise ValueError(f"{self.who}: {text}")
        if stage.then == "settle" or SETTLED in adapters_of(self.model):
            refuse_unsettled(spec.variant, self.who)

    @torch.no_grad()
    def _go_on(self, injection: Injection) -> None:
        """Set what is trained in full to where the stage before left it, and the adapter to its start."""
        for name, values in self.in_full.items():
            if name not in injection.trained:
                raise ValueError(f"{self.who}: {name} was trained in full, and stage {self.number} leaves it")
            injection.trained[name].copy_(values)
        if self.stage.start is not None:
            self.stage.start(injection)

    def _prepare(self) -> None:
        session, self.evaluator.injection = self.session, self.injection
        session.prepare(self.evaluator, training_arguments(session.settings, session.record.folder))

    def _train(self, tracker: Tracker, timer: StageTimer) -> bool:
        """Train the stage in hand and do with its adapter what it asks for; False after the last stage."""
        try:
            self.session.run(tracker, StageTimer(self.session.record))
        except Diverged as divergence:
            divergence.about |= {"step": self.before + divergence.step}
            raise
        finally:
            timer.update(summed(self.record.content[STAGES]))
        done, self.before = self.stage, self.before + self.stage.steps
        self._judge_groups(tracker)
        following = next_stage(self.program, self.injection)
        if (following is None) != (done.then == "keep"):
            raise ValueError(f"{self.who}: the last stage, and no other one, must be kept")
        if following is None:
            return False
        self.stage = following
        if done.then == "discard":
            if following.start is not None:
                self.in_full = values_in_full(self.injection)
            self.injection.remove()
        else:
            self._settle()
        return True

    def _judge_groups(self, tracker: Tracker) -> None:
        """Record what each group of the task reaches after this stage; after the last one, the run does."""
        record = self.session.record
        if self.evaluator.groups and self.stage.then != "keep" and "groups" not in record.content:
            with StageTimer(record).stage("evaluate"):
                record.update(groups=self.evaluator.evaluate(keep=False).groups)
        for split, groups in record.content.get("groups", {}).items():
            told = {f"{split}/{of}/{m}": value for of, own in groups.items() for m, value in own.items()}
            tracker.log(told, self.before)

    def _settle(self) -> None:
        stage, adapters = self.injection, adapters_of(self.model)
        following = stage_spec(self.spec, self.stage, self.number + 1).variant
        if not (stage.variant.adapts and following.adapts):
            before = fold(self.model, effective(self.model))
            self.base, self.in_full = self.base or before, {}
            return
        self.in_full = values_in_full(stage)
        parts = [*([adapters[SETTLED]] if SETTLED in adapters else []), stage]
        self.session.record.update(accumulated=accumulated_rank(parts))
        frozen = settled(self.model, parts, SETTLED, self.spec.settings.seed)
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)


def values_in_full(stage: Injection) -> dict[str, Tensor]:
    """A copy of what the stage has trained in full, by name."""
    return {name: stage.trained[name].detach().clone() for name in stage.fully_trained}


def next_stage(program: Any, learned: Injection) -> Stage | None:
    """The stage that follows on what the last one has `learned`; None where the program is over."""
    try:
        following: Stage = program.send(learned)
    except StopIteration:
        return None
    return following
