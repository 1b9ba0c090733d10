"""The training of one run, from its trainer to its saved adapter."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from safetensors.torch import save_file
from transformers import TrainerState, TrainingArguments

from lora_zoo.config.schema import Settings
from lora_zoo.core.processes import current
from lora_zoo.core.program import Stage
from lora_zoo.formats.native import save_adapter
from lora_zoo.injection.inject import Injection
from lora_zoo.runs.record import Record
from lora_zoo.runs.tracking import Tracker
from lora_zoo.tasks.cutting import Example
from lora_zoo.training import checkpoints
from lora_zoo.training.arguments import choose_best_by
from lora_zoo.training.calibration import HASHES, START
from lora_zoo.training.callbacks import EarlyStopping, LogCallback, ProgressBar
from lora_zoo.training.dropbp import BackwardDropper
from lora_zoo.training.evaluation import Evaluator
from lora_zoo.training.handover import FILE, Handover, Moments, flat, moments_of, pruned
from lora_zoo.training.interrupt import StopOnSignal, TimedCheckpoints
from lora_zoo.training.padding_free import laid_out
from lora_zoo.training.pruning import WATCHED, PruneCallback
from lora_zoo.training.resources import ResourcePool, TaskData
from lora_zoo.training.signals import SignalHandler, Stopped
from lora_zoo.training.stage_record import RunPosition, RunSteps
from lora_zoo.training.state import REQUIRED
from lora_zoo.training.timing import TRAINING, StageTimer
from lora_zoo.training.together import Alike, of_part
from lora_zoo.training.trainer import ZooTrainer
from lora_zoo.training.transformers_trainer import (
    TRAINER_STATE_NAME,
    get_reporting_integration_callbacks,
    rewrite_logs,
)


class RunContext(NamedTuple):
    """A run's console, sweep, signal handler and resources, and if its progress bar moves."""

    console: Console
    group: str | None
    signals: SignalHandler
    resources: ResourcePool
    progress: bool


class TrainingSession:
    """Trains an injection, drops what died in it, and saves the adapter.

    One that an earlier process has `finished` is not trained again.
    """

    def __init__(
        self,
        settings: Settings,
        record: Record,
        context: RunContext,
        injection: Injection,
        about: dict[str, Any],
        *,
        finished: bool,
        position: RunPosition = RunPosition(),  # noqa: B008 - it cannot change
        stage: Stage | None = None,
        moments: Moments | None = None,
    ) -> None:
        """`position` and `stage` are the place in a run of several, which hands on `moments`."""
        self.position, self.stage, self.moments = position, stage, moments or {}
        self.settings, self.record, self.context, self.about = settings, record, context, about
        self.injection = injection
        self.trainer: ZooTrainer | None = None
        self.finished = self.underway = finished
        """A step has been made: an error from now on is not the input's fault."""

    @property
    def automatic(self) -> bool:
        """True if the user set no save_steps; automatic checkpoints are deleted at the end."""
        return not self.settings.trainer.get("save_steps", 0)

    @property
    def checkpoints(self) -> Path:
        return self.record.folder / "checkpoints"

    def prepare(self, evaluator: Evaluator, arguments: TrainingArguments) -> None:
        """Make all that training needs, so that an error in it costs no evaluation."""
        if self.finished or not self.injection.trainable():
            return
        kind = evaluator.data.kind
        if arguments.label_smoothing_factor and kind.numbers:
            raise ValueError(
                "trainer.label_smoothing_factor is for classes and texts; numbers have none: use 0"
            )
        of = evaluator.record.content  # the run's, of which a stage is a part
        choose_best_by(arguments, self.settings, of["metric_facts"], of["metric"], kind.has_likelihood)
        if self.automatic and arguments.save_total_limit is None:
            arguments.save_total_limit = 2
        skip = arguments.logging_nan_inf_filter = self.settings.on_nonfinite == "skip"
        examples, collate = laid_out(self.settings, self.injection, kind, self._examples(evaluator.data))
        collate = of_part(collate)
        trainer = ZooTrainer(
            self.injection,
            evaluator=evaluator,
            skip=skip,
            stage=bool(self.position.total),
            about=self.about,
            args=arguments,
            handover=self._handover(),
            dropper=self._dropper(),
            data_collator=collate,
            train_dataset=examples,
        )
        trainer.check_schedule()
        if trainer.parts:
            self.record.update(parts={name: len(own) for name, own in trainer.parts.items()})
        self._add_callbacks(trainer, of["identity"])
        self.context.resources.prepare(trainer.accelerator)
        self.trainer = trainer

    def _add_callbacks(self, trainer: ZooTrainer, identity: str) -> None:
        if current().size > 1:
            trainer.add_callback(Alike(trainer.train_state))
        trainer.add_callback(StopOnSignal(trainer.train_state, self.context.signals))
        if given_up := WATCHED.get(identity):
            trainer.add_callback(PruneCallback(given_up, self.position.steps))
        if patience := self.settings.early_stopping_patience:
            trainer.add_callback(EarlyStopping(patience, self.settings.early_stopping_threshold))
        if self.automatic and self.settings.save_minutes:
            trainer.add_callback(TimedCheckpoints(self.settings.save_minutes))

    def _dropper(self) -> BackwardDropper | None:
        settings = self.settings
        if not settings.dropbp:
            return None
        how: dict[str, Any] = {"warmup": settings.dropbp_warmup, "uniform": settings.dropbp_uniform}
        return BackwardDropper(self.injection.model, settings.dropbp, seed=settings.seed, **how)

    def _handover(self) -> Handover:
        rewarm = self.stage.rewarm if self.stage else None
        return Handover(self.position.steps, self.position.total, rewarm, self.moments)

    def _examples(self, data: TaskData) -> list[Example]:
        """The training examples of the stage in hand. ValueError where there are none."""
        if self.stage is None or self.stage.examples is None:
            return data.encoded
        numbers = self.stage.examples(data.splits["train"])
        if not numbers:
            raise ValueError(f"{self.record.content['name']} has no training examples")
        self.record.update(examples=len(numbers))
        return [data.encoded[number] for number in numbers]

    def run(self, tracker: Tracker, timer: StageTimer) -> None:
        """Train, shrink and save; a session with nothing to train gives the tracker its old curves."""
        if self.trainer is None:
            _replay(tracker, self.record.content.get("history", []))
            return
        self._train(self.trainer, tracker, timer)
        if not self.position.total and self.injection.shrink():  # a stage's adapter is not the run's
            counts = self.record.content["parameters"]
            self.record.update(parameters=counts | {"final": self.injection.trainable()})
        if current().leads:
            self._save()

    def _train(self, trainer: ZooTrainer, tracker: Tracker, timer: StageTimer) -> None:
        context = self.context
        bar = ProgressBar(self.record.content["name"], context.console, disable=not context.progress)
        reporting = [callback() for callback in get_reporting_integration_callbacks(tracker.report_to)]
        told = [bar, LogCallback(), *reporting]
        for callback in [RunSteps(told, self.position)] if self.position.total else told:
            trainer.add_callback(callback)
        last = self._last_checkpoint()
        if last is not None:
            history = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)).log_history
            _replay(tracker, [self.position.shifted(entry) for entry in history])
        try:
            with timer.stage(TRAINING), context.signals.defer():
                trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            bar.close()
            steps, skipped = trainer.train_state.timer.summary(), trainer.train_state.skipped
            self.underway = bool(steps["steps"])
            self.record.update(history=trainer.state.log_history, **context.resources.about())
            timer.update(steps)
            if trainer.ranks.changes or self.position.total:
                self.record.update(ranks=trainer.ranks.changes)
            if skipped:
                self.record.update(skipped=skipped)
            if trainer.dropper is not None:
                self.record.update(dropbp=trainer.dropper.rates)
        if (number := context.signals.agree()) is not None:
            raise Stopped(number)
        self._ended(trainer)

    def _ended(self, trainer: ZooTrainer) -> None:
        """Record of which step the best adapter is. RuntimeError for an end that nobody asked for."""
        state, args = trainer.state, trainer.args
        if state.global_step < state.max_steps and not trainer.stopped_early:
            done, asked = state.global_step, state.max_steps
            raise RuntimeError(f"training ended after {done} of {asked} steps, although nobody stopped it")
        if trainer.kept_step is not None:
            metric = str(args.metric_for_best_model).removeprefix("eval_")
            about = {"step": trainer.kept_step, "of": state.global_step, "metric": metric}
            self.record.update(best=about | {"value": state.best_metric})
        elif args.load_best_model_at_end:
            self.record.tell(
                "the adapter is that of the last step: no evaluation has an adapter that was saved"
            )

    def _last_checkpoint(self) -> Path | None:
        """Find the last whole checkpoint of an earlier process and note it in the record."""
        assert self.trainer is not None
        flaw = self.trainer.train_state.flaw
        last = current().from_first(lambda: checkpoints.newest(self.checkpoints, REQUIRED, flaw))
        if "resumed" in self.record.content:
            *earlier, entry = self.record.content["resumed"]
            step = self.position.steps + (int(last.name.rpartition("-")[2]) if last else 0)
            self.record.update(resumed=[*earlier, entry | {"step": step}])
            self.context.console.print(f"resuming from step {step}", highlight=False)
        return last

    def _save(self) -> None:
        self._hand_on()
        keep_adapter(self.injection, self.record, self.about)
        if self.automatic:
            for folder in (self.checkpoints, self.record.folder / START):
                shutil.rmtree(folder, ignore_errors=True)

    def _hand_on(self) -> None:
        """Write the moments that the next stage takes over: before the adapter, which says it is done."""
        if self.stage is None or self.stage.pruned is None or self.stage.then == "keep":
            return
        assert self.trainer is not None
        found = moments_of(self.trainer.optimizer, self.injection)
        left = pruned(found, self.injection, self.stage.pruned, self.settings.seed)
        save_file(flat(left), self.record.folder / FILE)


def keep_adapter(injection: Injection, record: Record, about: dict[str, Any]) -> None:
    """Save the adapter in the record's folder and record its size and hash."""
    folder = save_adapter(injection, record.folder / "adapter", **about)
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    hashes = {key: checkpoints.digest(folder / name)["sha256"] for key, name in HASHES.items()}
    record.update(adapter={"folder": "adapter", "bytes": size, **hashes})


def _replay(tracker: Tracker, history: list[dict[str, Any]]) -> None:
    """Log the earlier curves again: an interrupted W&B run cannot always be resumed."""
    for entry in history:
        tracker.log(rewrite_logs({k: v for k, v in entry.items() if k != "step"}), entry["step"])
