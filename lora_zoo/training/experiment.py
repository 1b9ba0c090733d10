"""The steps of a run: data, model, adapter, training, judgement, what is kept."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks, rewrite_logs
from transformers.trainer import TRAINER_STATE_NAME

from lora_zoo.config.schema import Settings
from lora_zoo.core.adapter import Variant
from lora_zoo.core.hyperparameters import check_hyperparameters
from lora_zoo.core.seeding import derived_seed
from lora_zoo.formats.native import WEIGHTS, save_adapter
from lora_zoo.inject.injection import Injection, inject
from lora_zoo.inject.targets import head_names
from lora_zoo.merge import merge
from lora_zoo.metrics import load as load_metric
from lora_zoo.metrics import try_out
from lora_zoo.models.loading import Loaded
from lora_zoo.runs.identity import flat_hyperparameters
from lora_zoo.runs.record import Record
from lora_zoo.runs.tracking import Tracker, open_tracker
from lora_zoo.tasks.base import TaskType
from lora_zoo.tasks.forgetting import HeldOutLoss
from lora_zoo.training import checkpoints
from lora_zoo.training.arguments import training_arguments
from lora_zoo.training.callbacks import LogCallback, Progress, TimedCheckpoints
from lora_zoo.training.divergence import Diverged
from lora_zoo.training.evaluation import Evaluator, check_inputs
from lora_zoo.training.interrupt import Interrupt
from lora_zoo.training.resources import ResourcePool, TaskData
from lora_zoo.training.signals import SignalHandler, Stopped
from lora_zoo.training.trainer import NEEDED, ZooTrainer
from lora_zoo.updates.summary import summary


def asked(settings: Settings, modules_to_save: Any) -> dict[str, Any]:
    """What the settings say of targets, in the words of `inject`."""

    def listed(names: Any) -> list[str]:
        return [str(name) for name in (names if isinstance(names, (list, tuple)) else [names])]

    return {
        "target_modules": listed(settings.target_modules),
        "exclude_modules": listed(settings.exclude_modules),
        "layers": None if settings.layers is None else listed(settings.layers),
        "modules_to_save": listed(modules_to_save),
        "rank_pattern": settings.rank_pattern,
        "alpha_pattern": settings.alpha_pattern,
        "budget": settings.budget,
    }


class RunContext(NamedTuple):
    """Where a run speaks, its sweep, who may stop it, whence it has its base, how it shows its steps."""

    console: Console
    group: str | None
    signals: SignalHandler
    resources: ResourcePool
    progress: type[Progress]


class Experiment:
    """One run; `run` fills the record step by step, so that what is finished is kept whatever follows.

    What the record holds already, from a process that has ended, is not done again.
    """

    def __init__(
        self,
        settings: Settings,
        variant: type[Variant],
        record: Record,
        around: RunContext,
    ) -> None:
        self.settings, self.variant, self.record = settings, variant, record
        self.console, self.group, self.signals, self.resources, self.progress = around
        self.timings: dict[str, float] = dict(record.content.get("timings", {}))
        self.about: dict[str, Any] = {}
        self.underway = False  # a step has been made: what goes wrong now is no longer the input's fault

    @property
    def checkpoints(self) -> Path:
        return self.record.folder / "checkpoints"

    def run(self) -> None:
        hyper = flat_hyperparameters(self.settings, self.variant)
        complete = check_hyperparameters(self.variant, hyper)
        about = {"name": self.variant.name, "paper": self.variant.paper, "equation": self.variant.equation}
        self.record.update(variant=about | {"hyperparameters": complete})
        arguments = training_arguments(self.settings, self.record.folder, [])
        trust = self.settings.model.trust_remote_code
        metrics = {n: load_metric(n, trust_remote_code=trust) for n in self.settings.task.metrics}
        with self._timed("load"):
            material, loaded = self._load(metrics)
            injection = self._inject(loaded, hyper, material.kind)
        evaluator = Evaluator(
            injection, material, metrics, record=self.record, eval_splits=self.settings.eval_splits
        )
        trained = self._trained(injection)
        trainer = (
            None if trained or not injection.trainable() else self._trainer(injection, evaluator, arguments)
        )
        if trainer is not None:
            self._measure_activations(trainer)
        retention = self._retention(material)
        if self.settings.zero_shot and not trained and not self._judged("zero_shot", evaluator):
            with self._timed("zero_shot"):
                self.record.update(zero_shot=evaluator.evaluate(keep=False))
        with self._mirror() as mirror:
            self.record.update(tracking=mirror.where)
            try:
                if trainer is not None:
                    self._train(trainer, mirror)
                    self._save(injection)
                else:
                    self._replay(mirror, self.record.content.get("history", []))
            except Diverged as divergence:
                self.record.update(diverged=divergence.about)
                mirror.finish(self.record.content | {"state": "diverged"}, None, [])
                raise
            if not self._judged("metrics", evaluator):
                with self._timed("evaluate"):
                    self.record.update(metrics=evaluator.evaluate(keep=True))
            if retention is not None and "retention" not in self.record.content:
                self.record.update(retention=self._forgotten(retention, injection))
            self._keep(injection)
            adapter = self.record.folder / "adapter" if len(injection) else None  # a whole model stays here
            mirror.finish(self.record.content | {"state": "done"}, adapter, self.record.content["updates"])

    def _judged(self, what: str, evaluator: Evaluator) -> bool:
        """Whether an earlier process has recorded every split of `what`."""
        return set(evaluator.eval_splits) <= set(self.record.content.get(what, {}))

    def _load(self, metrics: dict[str, Any]) -> tuple[TaskData, Loaded]:
        settings, task = self.settings, self.settings.task
        material = self.resources.material(settings)
        kind, splits = material.kind, material.splits
        absent = [s for s in settings.eval_splits if s not in splits]
        if absent and set(absent) == set(settings.eval_splits):
            raise ValueError(f"task {task.name} has none of the splits eval_splits={settings.eval_splits}")
        facts = {}
        for name, metric in metrics.items():
            facts |= try_out(name, metric, *kind.made_up(), kind=task.kind)
        counts = task.metrics[0] if task.metrics[0] in facts else next(iter(facts))  # mine.py gives "mine"
        known = {value: about._asdict() for value, about in facts.items()}
        self.record.update(data=material.fingerprint, metric=counts, metric_facts=known)
        self.about = {"model": asdict(settings.model), "auto_class": kind.auto_class, "head": kind.head()}
        self.about |= kind.about()
        return material, self._model(material)

    def _model(self, material: TaskData) -> Loaded:
        return self.resources.base(self.settings, material, derived_seed("head", self.settings.seed))

    def _inject(self, loaded: Loaded, hyper: dict[str, Any], kind: TaskType) -> Injection:
        settings = self.settings
        save = settings.modules_to_save
        if save == "auto":
            save = [*loaded.new_modules, *(head_names(loaded.model) if kind.head() else [])]
        injection = self._adapted(loaded.model, asked(settings, save) | hyper)
        about: dict[str, Any] = self.record.content["variant"]
        self.record.update(variant=about | {"hyperparameters": injection.hyper})  # with the budget's rank
        trainable, total = injection.trainable(), injection.total()
        counts = {
            "trainable": trainable,
            "total": total,
            "share": trainable / total,
            "adapted": len(injection),
        }
        self.record.update(parameters=counts | {"in_full": injection.fully_trained})
        return injection

    def _adapted(self, model: nn.Module, how: dict[str, Any]) -> Injection:
        return inject(model, self.variant, **how, seed=self.settings.seed)

    def _trained(self, injection: Injection) -> bool:
        """Whether an earlier process has trained to the end; then its adapter is in the model."""
        kept, folder = self.record.content.get("adapter", {}), self.record.folder / "adapter"
        if "sha256" not in kept or not (folder / WEIGHTS).is_file():
            return False
        if checkpoints.digest(folder / WEIGHTS)["sha256"] != kept["sha256"]:
            return False
        injection.load_state_dict(load_file(folder / WEIGHTS))
        self.underway = True
        return True

    def _trainer(
        self, injection: Injection, evaluator: Evaluator, arguments: TrainingArguments
    ) -> ZooTrainer:
        """Everything that training needs, so that what is wrong with it costs no evaluation."""
        if self._unasked and arguments.save_total_limit is None:
            arguments.save_total_limit = 2
        skip = arguments.logging_nan_inf_filter = self.settings.on_nonfinite == "skip"
        data = evaluator.material.encoded
        check_inputs(injection.model, data)
        trainer = ZooTrainer(
            injection,
            evaluator=evaluator,
            skip=skip,
            about=self.about,
            args=arguments,
            data_collator=evaluator.material.kind.collate,
            train_dataset=data,
        )
        trainer.rehearse()
        trainer.add_callback(Interrupt(trainer, self.signals))
        if self._unasked and self.settings.save_minutes:
            trainer.add_callback(TimedCheckpoints(self.settings.save_minutes))
        return trainer

    @property
    def _unasked(self) -> bool:
        """Whether nobody asked for checkpoints: those that are made go when the run is done."""
        return not self.settings.trainer.get("save_steps", 0)

    def _train(self, trainer: ZooTrainer, mirror: Tracker) -> None:
        bar = self.progress(self.record.content["name"], self.console)
        for callback in (bar, LogCallback(), *get_reporting_integration_callbacks(mirror.report_to)):
            trainer.add_callback(callback)
        last = self._last_checkpoint()
        if last is not None:
            self._replay(mirror, TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)).log_history)
        try:
            with self._timed("train_wall"), self.signals.patient():
                trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            bar.close()
            self.timings |= trainer.counter.summary()
            self.underway = bool(self.timings["steps"])
            self.record.update(history=trainer.state.log_history, timings=self.timings)
            if trainer.skipped:
                self.record.update(skipped=trainer.skipped)
        if self.signals.asked is not None:
            raise Stopped(self.signals.asked)

    def _replay(self, mirror: Tracker, history: list[dict[str, Any]]) -> None:
        """An interrupted run of W&B cannot always be gone on with: the new one is given its curves."""
        for entry in history:
            mirror.log(rewrite_logs({k: v for k, v in entry.items() if k != "step"}), entry["step"])

    def _last_checkpoint(self) -> Path | None:
        """The last whole checkpoint of an earlier process, noted in the record."""
        last = checkpoints.newest(self.checkpoints, needs=NEEDED)
        if "resumed" in self.record.content:
            *earlier, entry = self.record.content["resumed"]
            step = int(last.name.rpartition("-")[2]) if last else 0
            self.record.update(resumed=[*earlier, entry | {"step": step}])
            self.console.print(f"going on from step {step}", highlight=False)
        return last

    def _save(self, injection: Injection) -> None:
        folder = save_adapter(injection, self.record.folder / "adapter", **self.about)
        size = sum(f.stat().st_size for f in folder.iterdir())
        digest = checkpoints.digest(folder / WEIGHTS)["sha256"]
        self.record.update(adapter={"folder": "adapter", "bytes": size, "sha256": digest})
        if self._unasked:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _retention(self, material: TaskData) -> HeldOutLoss | None:
        """ValueError where the run's model predicts no next token, or the text cannot be read."""
        source = self.settings.retention
        if source is None:
            return None
        if material.kind.auto_class != "AutoModelForCausalLM":
            raise ValueError(
                f"retention={source} asks how well a decoder predicts a text, and "
                f"task={self.settings.task.name} ({self.settings.task.kind}) loads another kind of model"
            )
        return HeldOutLoss(source, material.tokenizer)

    def _forgotten(self, retention: HeldOutLoss, injection: Injection) -> dict[str, Any]:
        """The loss on the other text without what was trained, and with it."""
        with injection.disabled():
            before = retention.loss(injection.model)
        about = {"of": retention.source, "tokens": retention.tokens}
        return about | {"before": before, "after": retention.loss(injection.model)}

    def _measure_activations(self, trainer: ZooTrainer) -> None:
        """Bytes kept for the backward pass of the first batch, with the adapters and without."""
        saved = trainer.saved_bytes()
        if saved is not None:
            self.record.update(memory=self.record.content.get("memory", {}) | saved)

    def _keep(self, injection: Injection) -> None:
        """The summary of the updates and, if asked for, the merged model."""
        self.record.update(updates=summary(injection))
        if self.settings.merge and injection.trainable() and not (self.record.folder / "merged").is_dir():
            trust = self.settings.model.trust_remote_code
            merge(self.record.folder, self.record.folder / "merged", trust_remote_code=trust)

    def _mirror(self) -> Tracker:
        settings, name = self.settings, self.record.content["name"]
        tags = [self.variant.name, settings.model.name, settings.task.name, *settings.tracking.tags]
        return open_tracker(
            asdict(settings.tracking),
            directory=self.record.folder,
            name=f"{name}-{self.record.content['identity']}",
            config=asdict(settings),
            group=self.group,
            tags=tags,
        )

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.timings[what] = time.perf_counter() - began
        self.record.update(timings=dict(self.timings))
