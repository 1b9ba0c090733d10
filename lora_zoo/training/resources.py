"""Where a run gets its data and its base model from: anew, or from the run before it in the same process.

What is shared cannot be told from what is new: the base is put back as it was and proved by a hash before it
is lent again, and loaded anew where the hash differs.
"""

import contextlib
import gc
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch

from lora_zoo.config.schema import Settings, file_of
from lora_zoo.models.loading import Loaded, load_model, load_tokenizer, source
from lora_zoo.models.snapshot import Snapshot, can_be_shared
from lora_zoo.tasks.base import Example
from lora_zoo.tasks.data import fingerprint, load_splits
from lora_zoo.config.task_types import TASK_TYPES

_log = logging.getLogger("lora_zoo")
DATA_SETS = 2
"""So many data sets are kept: a sweep over two tasks may alternate between them."""
GLOBAL = ("ACCELERATE_", "CUBLAS_", "FSDP_")
"""Environment variables through which transformers and accelerate tell themselves what a run asked for."""


class TaskData:
    """A task's data as a model's tokenizer reads them: splits, their hashes, training examples as tokens."""

    def __init__(self, settings: Settings) -> None:
        datasets.disable_progress_bars()
        self.splits = load_splits(settings.task)
        self.tokenizer = load_tokenizer(settings.model)
        self.kind = TASK_TYPES[settings.task.type](settings.task, self.tokenizer, self.splits)

    @cached_property
    def fingerprint(self) -> dict[str, dict[str, Any]]:
        return fingerprint(self.splits)

    @cached_property
    def encoded(self) -> list[Example]:
        return self.kind.encoded(self.splits["train"])


class ResourcePool(ABC):
    """Gives one run at a time what it needs; the run gives the base back, however it ended."""

    @abstractmethod
    def material(self, settings: Settings) -> TaskData:
        """The run's data. ValueError where they cannot be had."""

    @abstractmethod
    def base(self, settings: Settings, material: TaskData, seed: int) -> Loaded:
        """The model in evaluation mode, new heads drawn from `seed`. ValueError where it cannot be had."""

    @abstractmethod
    def give_back(self) -> None:
        """The run is over: nothing of it stays in what it was lent."""


class FreshResources(ResourcePool):
    """Everything anew: for a run that is alone in its process."""

    def material(self, settings: Settings) -> TaskData:
        return TaskData(settings)

    def base(self, settings: Settings, material: TaskData, seed: int) -> Loaded:
        kind = material.kind
        return load_model(settings.model, kind.auto_class, kind.head(), material.tokenizer, seed)

    def give_back(self) -> None: ...


class _Kept(NamedTuple):
    key: str
    loaded: Loaded
    snapshot: Snapshot


class CachedResources(FreshResources):
    """For the runs of a sweep: one base, which is dropped when another is asked for, and a few data sets."""

    def __init__(self) -> None:
        self._data: dict[str, TaskData] = {}
        self._base: _Kept | None = None

    def material(self, settings: Settings) -> TaskData:
        key = _key(asdict(settings.task), _model(settings), _files(settings))
        gc.collect()  # the run before is one great cycle
        found = self._data.pop(key, None) or super().material(settings)
        self._data[key] = found  # the last used is the last in line
        while len(self._data) > DATA_SETS:
            self._data.pop(next(iter(self._data)))
        return found

    def base(self, settings: Settings, material: TaskData, seed: int) -> Loaded:
        kind = material.kind
        key = _key(_model(settings), kind.auto_class, kind.head(), _files(settings, model=True))
        kept = self._base
        if kept is not None and kept.key in (key, _key(key, seed)):
            kept.snapshot.restore()
            if kept.snapshot.intact():
                torch.manual_seed(seed)  # as loading does
                return kept.loaded
            _log.info("the run before has changed the base model; it is loaded again")
        self._base = kept = None  # before another one takes its place in memory
        loaded = super().base(settings, material, seed)
        if can_be_shared(loaded.model):
            key = _key(key, seed) if loaded.new_modules else key  # a new head depends on the seed
            self._base = _Kept(key, loaded, Snapshot(loaded.model))
        return loaded

    def give_back(self) -> None:
        if self._base is not None:
            self._base.snapshot.restore()


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def _model(settings: Settings) -> dict[str, Any]:
    return asdict(settings.model)


def _files(settings: Settings, model: bool = False) -> list[Any]:
    """What the disk says of the local files behind the data and the model: they may change during a sweep."""
    folder = Path(source(settings.model))
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if not model:
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
    """Afterwards, what a run sets for its whole process is as before: threads, determinism, environment."""
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


_SHARED: list[CachedResources] = []


def of_this_process() -> CachedResources:
    """The supply that the runs of a sweep have in common, as far as they run in one process."""
    if not _SHARED:
        _SHARED.append(CachedResources())
    return _SHARED[0]
