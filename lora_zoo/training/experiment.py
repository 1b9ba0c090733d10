"""The steps of a run: data, model, adapter, training, judgement, what is kept."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import datasets
from rich.console import Console

from lora_zoo import metrics
from lora_zoo.adapters.adapter import Variant
from lora_zoo.adapters.checkpoint import save_adapter
from lora_zoo.adapters.injection import Injection, inject
from lora_zoo.adapters.randomness import derived_seed
from lora_zoo.adapters.registry import check_hyperparameters
from lora_zoo.adapters.targets import heads
from lora_zoo.configuration.settings import Settings
from lora_zoo.models.loading import Loaded, load_model, load_tokenizer
from lora_zoo.results import spectra
from lora_zoo.results.identity import flat_hyperparameters
from lora_zoo.results.mirror import Mirror, open_mirror
from lora_zoo.results.record import Record
from lora_zoo.tasks.kinds import KINDS, Kind
from lora_zoo.tasks.splits import fingerprint, load_splits
from lora_zoo.training.arguments import training_arguments
from lora_zoo.training.progress import DivergenceWatch, RichProgress
from lora_zoo.training.trainer import ZooTrainer


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


class Diverged(RuntimeError):
    """The loss is no longer a number: a finding, not a failure of the program."""


class Experiment:
    """One run; `run` fills the record step by step, so that what is finished is kept whatever follows."""

    def __init__(
        self,
        settings: Settings,
        variant: type[Variant],
        record: Record,
        console: Console,
        group: str | None,
    ) -> None:
        self.settings, self.variant, self.record, self.console = settings, variant, record, console
        self.group = group
        self.timings: dict[str, float] = {}

    def run(self) -> None:
        hyper = flat_hyperparameters(self.settings, self.variant)
        complete = check_hyperparameters(self.variant, hyper)
        about = {"name": self.variant.name, "paper": self.variant.paper, "equation": self.variant.equation}
        self.record.update(variant=about | {"hyperparameters": complete})
        arguments = training_arguments(self.settings, self.record.folder, [])
        judges = {name: metrics.load(name) for name in self.settings.task.metrics}
        with self._timed("load"):
            kind, splits, loaded = self._load()
            injection = self._inject(loaded, hyper, kind)
        bench = Bench(
            injection, kind, splits, judges, record=self.record, eval_splits=self.settings.eval_splits
        )
        if self.settings.zero_shot:
            with self._timed("zero_shot"):
                self.record.update(zero_shot=bench.judge(keep=False))
        with self._mirror() as mirror:
            self.record.update(tracking=mirror.where)
            arguments.report_to = mirror.report_to
            try:
                if injection.trainable():
                    self._train(
                        ZooTrainer(injection, bench=bench, args=arguments, data_collator=kind.collate)
                    )
            except Diverged:
                mirror.finish(self.record.content | {"state": "diverged"}, None, [])
                raise
            with self._timed("evaluate"):
                self.record.update(metrics=bench.judge(keep=True))
            self._keep(injection, loaded, kind)
            adapter = self.record.folder / "adapter" if len(injection) else None  # a whole model stays here
            mirror.finish(self.record.content | {"state": "done"}, adapter, self.record.content["updates"])

    def _load(self) -> tuple[Kind, dict[str, Any], Loaded]:
        datasets.disable_progress_bars()
        settings = self.settings
        splits = load_splits(settings.task)
        absent = [s for s in settings.eval_splits if s not in splits]
        if absent and set(absent) == set(settings.eval_splits):
            raise ValueError(
                f"task {settings.task.name} has none of the splits eval_splits={settings.eval_splits}"
            )
        self.record.update(data=fingerprint(splits), metric=settings.task.metrics[0])
        tokenizer = load_tokenizer(settings.model)
        kind = KINDS[settings.task.kind](settings.task, tokenizer, splits)
        seed = derived_seed("head", settings.seed)
        return kind, splits, load_model(settings.model, kind.auto_class, kind.head(), tokenizer, seed)

    def _inject(self, loaded: Loaded, hyper: dict[str, Any], kind: Kind) -> Injection:
        settings = self.settings
        save = settings.modules_to_save
        if save == "auto":
            save = [*loaded.new_modules, *(heads(loaded.model) if kind.head() else [])]
        injection = inject(loaded.model, self.variant, **asked(settings, save), seed=settings.seed, **hyper)
        about: dict[str, Any] = self.record.content["variant"]
        self.record.update(variant=about | {"hyperparameters": injection.hyper})  # with the budget's rank
        trainable, total = injection.trainable(), injection.total()
        counts = {
            "trainable": trainable,
            "total": total,
            "share": trainable / total,
            "adapted": len(injection),
        }
        self.record.update(parameters=counts | {"in_full": injection.in_full})
        return injection

    def _train(self, trainer: ZooTrainer) -> None:
        bench: Bench = trainer.bench
        trainer.train_dataset = bench.kind.encoded(bench.splits["train"])
        bar, watch = RichProgress(self.record.content["name"], self.console), DivergenceWatch()
        trainer.add_callback(bar)
        trainer.add_callback(watch)
        try:
            with self._timed("train_wall"):
                trainer.train()
        finally:
            bar.close()
            with suppress(OSError):
                (self.record.folder / "checkpoints").rmdir()  # it is made even where nothing is saved to it
            self.record.update(
                history=trainer.state.log_history, timings=self.timings | trainer.clock.summary()
            )
        self.timings |= trainer.clock.summary()
        if watch.diverged_at is not None:
            raise Diverged(
                f"the loss is no longer a number at step {watch.diverged_at}; lr={self.settings.lr:g}"
            )

    def _keep(self, injection: Injection, loaded: Loaded, kind: Kind) -> None:
        """The adapter, the summary of its updates and, if asked for, the merged model."""
        self.record.update(updates=spectra.summary(injection))
        if injection.trainable():
            about = {"model": asdict(self.settings.model), "auto_class": kind.auto_class, "head": kind.head()}
            save_adapter(injection, self.record.folder / "adapter", **about)
            size = sum(f.stat().st_size for f in (self.record.folder / "adapter").iterdir())
            self.record.update(adapter={"folder": "adapter", "bytes": size})
        if self.settings.merge:
            injection.merge()
            loaded.model.save_pretrained(self.record.folder / "merged")  # type: ignore[operator]
            load_tokenizer(self.settings.model).save_pretrained(self.record.folder / "merged")

    def _mirror(self) -> Mirror:
        settings, name = self.settings, self.record.content["name"]
        tags = [self.variant.name, settings.model.name, settings.task.name, *settings.tracking.tags]
        return open_mirror(
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


class Bench:
    """Judges an adapted model on a task's splits, by the task's metrics."""

    def __init__(
        self,
        injection: Injection,
        kind: Kind,
        splits: dict[str, Any],
        judges: dict[str, Any],
        *,
        record: Record,
        eval_splits: list[str],
    ) -> None:
        self.injection, self.kind, self.splits, self.judges = injection, kind, splits, judges
        self.record, self.eval_splits = record, [s for s in eval_splits if s in splits]

    def judge(self, *, keep: bool) -> dict[str, dict[str, float]]:
        """Metrics by split; `keep` writes the outcome of every example to the run's folder."""
        return {split: self.judge_split(split, keep=keep) for split in self.eval_splits}

    def judge_split(self, split: str, *, keep: bool = False) -> dict[str, float]:
        model = self.injection.model
        training = model.training
        model.eval()
        outcomes = self.kind.outcomes(model, self.splits[split])
        model.train(training)
        if keep:
            self.record.examples(split, outcomes)
        predictions = [o["prediction"] for o in outcomes]
        references = [o["reference"] for o in outcomes]
        values: dict[str, float] = {}
        for metric in self.judges.values():
            values |= metric.compute(predictions=predictions, references=references)
        return values
