"""The stages of a run: data, model, adapter, training, evaluation, what is kept."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import nn

from lora_zoo.config.schema import Settings
from lora_zoo.config.spec import RunSpec
from lora_zoo.core.hyperparameters import check_hyperparameters
from lora_zoo.core.processes import current
from lora_zoo.core.seeding import derived_seed
from lora_zoo.formats.folders import adapter_digest, prior_folders, saved_folder
from lora_zoo.formats.native import load_adapter
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.targets import head_names
from lora_zoo.metrics import MetricFacts, try_out
from lora_zoo.metrics import load as load_metric
from lora_zoo.models.base import warn_of_another_base
from lora_zoo.models.loading import Loaded, OtherSize, source
from lora_zoo.models.merging import merge, refuse_unmergeable
from lora_zoo.runs.record import Record
from lora_zoo.runs.tracking import Tracker, open_tracker
from lora_zoo.tasks.forgetting import AUTO, HeldOutLoss, held_out, is_measured, reads_on
from lora_zoo.tasks.judgeable import NotFinite
from lora_zoo.tasks.reading import findings, in_words, untaught
from lora_zoo.training.arguments import training_arguments
from lora_zoo.training.before_training import key_of
from lora_zoo.training.calibration import has_trained, inject_calibrated
from lora_zoo.training.divergence import Diverged
from lora_zoo.training.evaluation import Evaluator, check_inputs, check_positions, check_references, perfect
from lora_zoo.training.replay import with_replay
from lora_zoo.training.resources import TaskData
from lora_zoo.training.session import RunContext, TrainingSession
from lora_zoo.training.stages import StagedTraining
from lora_zoo.training.threads import choose_threads
from lora_zoo.training.timing import StageTimer
from lora_zoo.training.together import divide_base
from lora_zoo.updates.summary import summary

_log = logging.getLogger("lora_zoo")


def target_arguments(settings: Settings, heads: Sequence[str]) -> dict[str, Any]:
    """Arguments of `inject` from the settings of targets; `heads` are what `auto` means to be trained."""

    def names(value: Any) -> list[str]:
        return [str(name) for name in (value if isinstance(value, (list, tuple)) else [value])]

    save = [own for name in names(settings.modules_to_save) for own in (heads if name == "auto" else [name])]
    return {
        "target_modules": names(settings.target_modules),
        "exclude_modules": names(settings.exclude_modules),
        "layers": None if settings.layers is None else names(settings.layers),
        "modules_to_save": save,
        "rank_pattern": settings.rank_pattern,
        "alpha_pattern": settings.alpha_pattern,
        "budget": settings.budget,
    }


class Experiment:
    """One run; `run` fills the record stage by stage, so that what is finished is kept whatever follows.

    Stages that the record holds already, from a process that has ended, are not done again.
    """

    def __init__(self, spec: RunSpec, record: Record, context: RunContext) -> None:
        self.spec, self.record, self.context = spec, record, context
        self.settings, self.variant = spec.settings, spec.variant
        self.timer = StageTimer(record)
        self.about: dict[str, Any] = {}
        self.prior: dict[str, list[str]] = {}
        self.session: TrainingSession | StagedTraining | None = None

    @property
    def underway(self) -> bool:
        """True once a step has been made: an error from then on is not the input's fault."""
        return self.session is not None and self.session.underway

    def run(self) -> None:
        evaluator, session = self._prepare()
        text = self._held_out(evaluator.data)
        self._tell(evaluator.data)
        if (
            self.settings.eval_before_training
            and not session.finished
            and not self._evaluated("zero_shot", evaluator)
        ):
            with self.timer.stage("zero_shot"):
                self._judge_before(evaluator)
        with self._tracker() as tracker:
            self.record.update(tracking=tracker.where)
            try:
                self._train(session, evaluator, tracker)
            except Diverged as divergence:
                self.record.update(diverged=divergence.about)
                tracker.finish(self.record.content | {"state": "diverged"}, None, [])
                raise
            if evaluator.missing_views():
                with self.timer.stage("views"):
                    evaluator.judge_views()
            injection = evaluator.injection
            if text is not None and not is_measured(self.record.content):
                with self.timer.stage("forgetting"):
                    self.record.update(retention=text.before_and_after(injection))
            self._keep(injection)
            own = len(injection) or injection.shared is not None
            adapter = self.record.folder / "adapter"
            sent = adapter if own and adapter.is_dir() else None  # a whole model stays here
            tracker.finish(self.record.content | {"state": "done"}, sent, self.record.content["updates"])

    def follow(self) -> None:
        """Train with the process that leads, which alone keeps anything and, with the whole base, judges."""
        if self.settings.fsdp:
            self.run()
            return
        _, session = self._prepare()
        session.run(Tracker(), self.timer)

    def _train(
        self, session: TrainingSession | StagedTraining, evaluator: Evaluator, tracker: Tracker
    ) -> None:
        """Train and judge. Raises Diverged, too, where the trained model has no answers but NaN and inf."""
        try:
            session.run(tracker, self.timer)
            if not self._evaluated("metrics", evaluator):
                with self.timer.stage("evaluate"):
                    judged = evaluator.evaluate(keep=True)
                    self.record.update(**judged.under("metrics", "likelihood", "groups"))
        except NotFinite as broken:
            steps = int(self.record.content.get("timings", {}).get("steps", 0))
            raise Diverged(f"after {steps} steps, {broken}", step=steps, layers=[]) from broken

    def _judge_before(self, evaluator: Evaluator) -> None:
        """Record what the model reaches before training, which a run that began as it does may have told."""
        own = self.record.folder.name
        measure = partial(evaluator.evaluate, keep=False)
        judged, run = self.context.resources.once(key_of(evaluator, self.spec), own, measure)
        told = judged.under("zero_shot", "zero_shot_likelihood", "zero_shot_groups")
        self.record.update(**told, **({} if run == own else {"zero_shot_measured_in": run}))

    def _prepare(self) -> tuple[Evaluator, TrainingSession | StagedTraining]:
        """Load, adapt and check all that the run needs."""
        settings, record = self.settings, self.record
        complete = check_hyperparameters(self.variant, self.spec.hyperparameters)
        about = {"name": self.variant.name, "paper": self.variant.paper, "equation": self.variant.equation}
        record.update(variant=about | {"hyperparameters": complete})
        arguments = training_arguments(settings, record.folder)
        trust = settings.model.trust_remote_code
        metrics = {n: load_metric(n, trust_remote_code=trust) for n in settings.task.metrics}
        with self.timer.stage("load"):
            data, loaded = self._load(metrics)
            threads = choose_threads(settings, loaded.model, data.encoded)
            record.update(environment=record.content.get("environment", {}) | {"threads": threads})
            self.session = session = self._session(loaded, data)
            active = adapters_of(loaded.model).values()
            virtual = sum(own.variant.virtual_tokens(own.hyper) for own in active)
            check_positions(loaded.model, data.readings, virtual)
        used = {"hyperparameters": complete, "scales": list[float]()}
        if session.injection.variant is self.variant:  # a program's first stage may have another
            used = {"hyperparameters": session.injection.hyper, "scales": session.injection.scales()}
        self.record.update(variant=about | used)  # with the budget's rank
        evaluator = Evaluator(
            session.injection, data, metrics, record=record, eval_splits=settings.eval_splits
        )
        session.prepare(evaluator, arguments)
        alone = self.context.resources.exclusive and current().leads and not current().divided
        trainer = session.trainer if alone else None
        if trainer is not None and (saved := trainer.saved_bytes()):
            record.update(memory=record.content.get("memory", {}) | saved)
        return evaluator, session

    def _tell(self, data: TaskData) -> None:
        """Say on one line how the data were read, and on further ones what to know of them."""
        read = data.fingerprint
        parts = [in_words(split, read[split]["size"], read[split]) for split in data.splits]
        found = [text for s in data.splits for text in findings(s, read[s], read[s]["size"])]
        found += untaught(read)
        size, asked = len(data.encoded), self.settings.batch_size
        if size < asked:
            found.append(f"train has {size} examples, less than batch_size={asked}: each step sees them all")
        line = f"data: {'; '.join(parts)}"
        _log.info("%s", line)
        if self.context.group is None:
            self.context.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.record.tell(*found)

    def _evaluated(self, key: str, evaluator: Evaluator) -> bool:
        """True if an earlier process has recorded every split under `key`."""
        return set(evaluator.eval_splits) <= set(self.record.content.get(key, {}))

    def _load(self, metrics: dict[str, Any]) -> tuple[TaskData, Loaded]:
        settings, task, resources = self.settings, self.settings.task, self.context.resources
        data = resources.task_data(settings)
        kind, splits = data.kind, data.splits
        absent = [s for s in settings.eval_splits if s not in splits]
        if absent and set(absent) == set(settings.eval_splits):
            raise ValueError(f"task {task.name} has none of the splits eval_splits={settings.eval_splits}")
        facts: dict[str, MetricFacts] = {}
        predictions, references = kind.made_up()
        for name, metric in metrics.items():
            given, of = kind.metric_arguments(name), f"type={task.type}"
            best, against = perfect(name, metric, predictions, references, kind)
            found = try_out(name, metric, best, against, of, **given)
            if twice := facts.keys() & found:
                raise ValueError(
                    f"task.metrics: {name} gives {min(twice)!r}, as another one does; take one out"
                )
            facts |= found
        check_references(data, metrics)
        counts = task.metrics[0] if task.metrics[0] in facts else next(iter(facts))  # mine.py gives "mine"
        known = {value: about._asdict() for value, about in facts.items()}
        self.record.update(data=data.fingerprint, metric=counts, metric_facts=known)
        self.about = {"model": asdict(settings.model), "auto_class": kind.auto_class, "head": kind.head()}
        self.about |= kind.about()
        data, replayed = with_replay(data, settings, resources.task_data)
        self.record.tell(
            *(f"train has {n} examples of {run} as well (replay)" for run, n in replayed.items())
        )
        try:
            loaded = resources.base(settings, data, derived_seed("head", settings.seed))
        except OtherSize as error:
            names = kind.head().get("id2label", {})
            classes = [f"the task has {len(names)} classes"] if names else []
            raise OtherSize("; ".join([str(error), *classes, *untaught(data.fingerprint)])) from error
        check_inputs(loaded.model, data.readings)
        return data, loaded

    def _session(self, loaded: Loaded, data: TaskData) -> TrainingSession | StagedTraining:
        record, context, make = self.record, self.context, partial(self._inject, loaded, data)
        self._load_priors(loaded.model)
        if self.settings.program:
            of: dict[str, Any] = {"inject": make, "data": data, "model": loaded.model, "about": self.about}
            return StagedTraining(self.spec, record, context, **of)
        finished = has_trained(record)
        injection = make(self.spec, record, {}, trained=finished)
        if self.settings.fsdp:
            divide_base(injection)
        return TrainingSession(self.settings, record, context, injection, self.about, finished=finished)

    def _load_priors(self, model: nn.Module) -> None:
        """Put the prior adapters into the model; the record says what they and the start are.

        ValueError where one does not fit it. A warning names one that was trained on another base.
        """
        folders = prior_folders(self.settings.prior or ())
        if not folders and self.variant.hooks.needs_priors:
            self.record.update(prior=[])  # a finding: nothing is composed
        for name, folder in folders.items():
            load_adapter(model, folder, name=name)
            warn_of_another_base(folder, self.settings.model)
        if start := self.settings.start_from:
            folder = saved_folder("start_from", start)
            warn_of_another_base(folder, self.settings.model)
            self.record.update(start_from={"sha256": adapter_digest(folder), "path": str(folder)})
        if folders:
            about = [{"name": n, "sha256": adapter_digest(f), "path": str(f)} for n, f in folders.items()]
            self.record.update(prior=about)
            self.prior = {"prior": [*folders]}

    def _inject(
        self,
        loaded: Loaded,
        data: TaskData,
        spec: RunSpec,
        record: Record,
        asked: Mapping[str, Any],
        *,
        trained: bool,
    ) -> Injection:
        """Adapt the model as `spec` says and `asked` says otherwise; the record keeps its sizes.

        An adapter that has `trained` is as it ended.
        """
        settings, kind, resources = self.settings, data.kind, self.context.resources
        heads = [*loaded.new_modules, *(head_names(loaded.model) if kind.head() else [])]
        arguments = target_arguments(settings, heads) | spec.hyperparameters | self.prior | dict(asked)
        arguments["branch_dtype"] = settings.branch_dtype
        injection = inject_calibrated(
            spec,
            loaded.model,
            data,
            arguments,
            resources=resources,
            folder=record.folder,
            trained=trained,
        )
        if settings.merge:
            refuse_unmergeable(injection)
        if trained:
            return injection  # the record has the counts that it trained with
        trainable, total = injection.trainable(), injection.total()
        counts: dict[str, Any] = {"trainable": trainable, "total": total, "share": trainable / total}
        counts |= {"adapted": len(injection), "in_full": injection.fully_trained}
        record.update(parameters=counts)
        return injection

    def _held_out(self, data: TaskData) -> HeldOutLoss | None:
        """The held-out text that is set or, of "auto", known; where a decoder has none, the record says why.

        ValueError where one is set and cannot be used.
        """
        asked, of = self.settings.forgetting_text, self.settings.model
        if asked == AUTO and not reads_on(data.kind):
            return None
        try:
            return held_out(asked, source(of), data.kind, data.tokenizer) if asked else None
        except ValueError as reason:
            if asked != AUTO:
                raise
            self.record.update(retention={"of": None, "why": str(reason)})
            return None

    def _keep(self, injection: Injection) -> None:
        """Record the summary of the updates and save the merged model, if set."""
        self.record.update(updates=summary(injection))
        if self.settings.merge and not injection.trainable():
            self.record.tell("merge=true writes no model, as nothing has trained")
        elif self.settings.merge and not (self.record.folder / "merged").is_dir():
            trust = self.settings.model.trust_remote_code
            merge(self.record.folder, self.record.folder / "merged", trust_remote_code=trust)

    def _tracker(self) -> Tracker:
        settings, name = self.settings, self.record.content["name"]
        tags = [self.variant.name, settings.model.name, settings.task.name, *settings.tracking.tags]
        return open_tracker(
            asdict(settings.tracking),
            directory=self.record.folder,
            name=f"{name}-{self.record.content['identity']}",
            config=asdict(settings),
            group=self.context.group,
            tags=tags,
        )
