"""The resources of a run: its process, its data, its base model. New, cached, or a launcher's own.

Runs of one process reuse the base model. It is restored after each run and its hash checked before the next;
if it differs, the model is loaded again. `ResourcePool` is the one seam between a run and whoever starts it.
"""

import contextlib
import copy
import gc
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from accelerate import Accelerator
from torch import nn

from lora_zoo.config.schema import Settings, file_of
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.adapter import Variant
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.models.loading import Loaded, load_model, load_processor, source
from lora_zoo.models.snapshot import Snapshot, can_be_shared
from lora_zoo.tasks.cutting import Example, Fitted
from lora_zoo.tasks.data import fingerprint, load_splits
from lora_zoo.tasks.reading import Reading, read_judged, read_train
from lora_zoo.training.measured import Measurements
from lora_zoo.training.signals import SignalHandler

_log = logging.getLogger("lora_zoo")
DATA_SETS = 2
"""Data sets that are kept: a sweep over two tasks may alternate between them."""
GLOBAL = ("ACCELERATE_", "CUBLAS_", "FSDP_")
"""Prefixes of the environment variables in which transformers and accelerate keep a run's settings."""


class TaskData:
    """A task's data as a model's tokenizer reads them: splits, their hashes, training examples as tokens."""

    def __init__(self, settings: Settings) -> None:
        datasets.disable_progress_bars()
        self._loaded = load_splits(settings.task, judged := judged_splits(settings))
        read = {name: self._loaded[name] for name in self._loaded if name in ("train", *judged)}
        kind = TASK_TYPES[settings.task.type]
        self.tokenizer = load_processor(settings.model, kind.auto_class)
        self.kind = kind(settings.task, self.tokenizer, read)
        self.splits = {name: self.kind.divided(name, data) for name, data in read.items()}

    @cached_property
    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Size and hash of every split, with how it was read if it is used."""
        cuts = self._loaded.cuts
        read = {name: reading.about for name, reading in self.readings.items()}
        found = fingerprint(self._loaded).items()
        return {name: about | read.get(name, {}) | dict(cuts.get(name, {})) for name, about in found}

    def with_examples(self, encoded: list[Example]) -> "TaskData":
        """The same data with these training examples, as tokens, in the place of its own."""
        found = copy.copy(self)
        found.__dict__["encoded"] = encoded
        return found

    @cached_property
    def _fitted(self) -> list[Fitted]:
        return [self.kind.fitted(example) for example in self.splits["train"]]

    @cached_property
    def encoded(self) -> list[Example]:
        return [fitted.inputs for fitted in self._fitted]

    @cached_property
    def readings(self) -> dict[str, Reading]:
        """The account of each split. ValueError for one that cannot be used."""
        kind, train = self.kind, list(self.splits["train"])
        asked = {kind.asks(kind.task, row) for row in train}
        judged = {name: data for name, data in self.splits.items() if name != "train"}
        read = {name: read_judged(kind, data, asked) for name, data in judged.items()}
        return {"train": read_train(kind, train, self._fitted), **read}


def judged_splits(settings: Settings) -> tuple[str, ...]:
    """The splits that a run is judged on: at its end and, if it says so, in the middle of training."""
    given = (settings.trainer.get(key) for key in ("eval_steps", "eval_strategy", "eval_on_start"))
    midway = any(value not in (None, 0, False, "no") for value in given)
    return tuple(dict.fromkeys([*settings.eval_splits, *(["validation"] if midway else [])]))


class ResourcePool(ABC):
    """Lends one run at a time what it needs; the run gives the base back, however it ended."""

    exclusive = True
    """True if passes of the base are this run's alone, so that their memory can be measured."""

    @contextlib.contextmanager
    def process(self) -> Iterator[SignalHandler]:
        """Inside, signals stop the run; afterwards the settings of the process are as they were."""
        with SignalHandler().listening() as signals, process_as_it_was():
            yield signals

    @abstractmethod
    def task_data(self, settings: Settings) -> TaskData:
        """The run's data. ValueError where they cannot be had."""

    @abstractmethod
    def base(self, settings: Settings, data: TaskData, seed: int) -> Loaded:
        """The model in evaluation mode, new heads drawn from `seed`. ValueError where it cannot be had."""

    def inject(
        self,
        model: nn.Module,
        variant: type[Variant],
        seed: int,
        arguments: Mapping[str, Any],
        batches: Iterable[Mapping[str, Any]],
    ) -> Injection:
        """Adapt the base; all but `seed` as in `inject`. ValueError where the arguments do not fit it."""
        return inject(model, variant, **arguments, seed=seed, batches=batches)

    def prepare(self, accelerator: Accelerator) -> None:  # noqa: B027
        """Prepare the accelerator that will run the backward passes."""

    def once(self, key: str, run: str, measure: Callable[[], Any]) -> tuple[Any, str]:
        """The value of `measure`, and the run for which it was made: this one or one before of this key."""
        return measure(), run

    def about(self) -> dict[str, Any]:
        """Entries for the record of a run that has trained."""
        return {}

    def give_back(self) -> None:  # noqa: B027
        """End the run: nothing of it stays in what it was lent."""


class FreshResources(ResourcePool):
    """Loads everything: for a run that is alone in its process."""

    def task_data(self, settings: Settings) -> TaskData:
        return TaskData(settings)

    def base(self, settings: Settings, data: TaskData, seed: int) -> Loaded:
        kind = data.kind
        return load_model(settings.model, kind.auto_class, kind.head(), data.tokenizer, seed)


class _Kept(NamedTuple):
    key: str
    loaded: Loaded
    snapshot: Snapshot


class CachedResources(FreshResources):
    """Keeps one base, dropped when another is requested, and a few data sets for the runs of a sweep."""

    def __init__(self) -> None:
        self._data: dict[str, TaskData] = {}
        self._base: _Kept | None = None
        self._measured = Measurements()

    def task_data(self, settings: Settings) -> TaskData:
        key = _key(asdict(settings.task), asdict(settings.model), judged_splits(settings), _files(settings))
        gc.collect()  # the run before is one great cycle
        found = self._data.pop(key, None) or super().task_data(settings)
        self._data[key] = found  # the last used is the last in line
        if len(self._data) > DATA_SETS:
            self._data.pop(next(iter(self._data)))
        return found

    def base(self, settings: Settings, data: TaskData, seed: int) -> Loaded:
        kind = data.kind
        key = _key(asdict(settings.model), kind.auto_class, kind.head(), _files(settings, model=True))
        kept = self._base
        if kept is not None and kept.key in (key, _key(key, seed)):
            kept.snapshot.restore()
            if kept.snapshot.intact():
                torch.manual_seed(seed)  # as loading does
                return kept.loaded
            _log.info("the run before has changed the base model; it is loaded again")
        self._base = kept = None  # before another one takes its place in memory
        loaded = super().base(settings, data, seed)
        if can_be_shared(loaded.model):
            key = _key(key, seed) if loaded.new_modules else key  # a new head depends on the seed
            self._base = _Kept(key, loaded, Snapshot(loaded.model))
        return loaded

    def once(self, key: str, run: str, measure: Callable[[], Any]) -> tuple[Any, str]:
        return self._measured.once(key, run, measure)

    def give_back(self) -> None:
        if self._base is not None:
            self._base.snapshot.restore()


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def _files(settings: Settings, model: bool = False) -> list[Any]:
    """Stat the local files behind the data and the model, which may change during a sweep."""
    folder = Path(source(settings.model))
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if not model:
        if settings.task.data_dir and not settings.task.data_files:
            found += sorted(Path(settings.task.data_dir).expanduser().rglob("*"))
        for name in settings.task.data_files.values():
            path = file_of(settings.task, name)
            found += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    return [_stat(path) for path in found]


def _stat(path: Path) -> tuple[str, int, int, int] | str:
    try:
        about = path.stat()
    except OSError:
        return str(path)
    return str(path), about.st_size, about.st_mtime_ns, about.st_ino


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """Restore afterwards what a run sets for its whole process: threads, determinism, environment."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision, environment = torch.get_float32_matmul_precision(), _environment()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_float32_matmul_precision(precision)
        for name in _environment().keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(GLOBAL)}


@cache
def of_this_process() -> CachedResources:
    """The resources that the runs of a sweep share as far as they run in one process."""
    return CachedResources()
