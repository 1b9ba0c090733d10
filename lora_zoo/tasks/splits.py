"""The splits of a task as `datasets.Dataset`s with the columns that its kind works on.

Local files, Hub data sets and the generated pocket tasks all come out alike: `prompt` and `target`, or `text`
(with `text_pair`) and `label`; every split has an `item` column, the example's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_zoo.adapters.registry import unknown
from lora_zoo.configuration.settings import Task, file_of

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
POCKET = ("pocket-sql", "pocket-nli")
# One data set for every run and seed: what differs between seeds is the order in which it is seen.
_POCKET_SEED = 0


def load_splits(task: Task) -> dict[str, Dataset]:
    """Every split that the task has, in `SPLITS`' order.

    Raises ValueError for a missing column, an empty split, or a label outside `task.labels`.
    """
    raw = _pocket(task) if task.path in POCKET else _load(task)
    if "train" not in raw:
        raise ValueError(f"task {task.name}: the data has no train split; it has {', '.join(raw)}")
    if "validation" not in raw:
        parts = raw["train"].train_test_split(test_size=task.validation_share, seed=0)
        raw = raw | {"train": parts["train"], "validation": parts["test"]}
    return {name: _canonical(task, name, raw[name]) for name in SPLITS if name in raw}


def _pocket(task: Task) -> dict[str, Dataset]:
    from datasets import Dataset

    from lora_zoo.pocket import nli, sql

    make = {"pocket-sql": sql.examples, "pocket-nli": nli.examples}[task.path]
    return {
        name: Dataset.from_list(make(name, task.sizes[name], _POCKET_SEED))
        for name in SPLITS
        if name in task.sizes
    }


def _load(task: Task) -> dict[str, Dataset]:
    from datasets import load_dataset

    files = {split: str(file_of(task, name)) for split, name in task.data_files.items()}
    arguments: dict[str, Any] = dict(task.options) | ({"data_files": files} if files else {})
    try:
        loaded = load_dataset(task.path, task.config_name, **arguments)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise ValueError(f"task {task.name}: cannot load task.path={task.path}: {error}") from error
    wanted = {split: task.splits.get(split, split) for split in SPLITS}
    return {split: loaded[name] for split, name in wanted.items() if name in loaded}


def _canonical(task: Task, split: str, data: Dataset) -> Dataset:
    for column in task.columns.values():
        if column not in data.column_names:
            raise ValueError(f"task {task.name}, {split}: " + unknown("column", column, data.column_names))
    data = data.select_columns(list(dict.fromkeys(task.columns.values()))) if task.columns else data
    data = data.rename_columns({old: new for new, old in task.columns.items() if old != new})
    size = task.sizes.get(split)
    data = data.select(range(min(size, len(data)))) if size else data
    if not len(data):
        raise ValueError(f"task {task.name}: the {split} split is empty")
    for column in data.column_names:
        if any(value is None for value in data[column]):
            raise ValueError(f"task {task.name}, {split}: column {column} has empty values")
    return data.add_column("item", list(range(len(data))))


def label_set(task: Task, splits: Mapping[str, Dataset]) -> list[str]:
    """The labels in the order of their ids: the declared ones, else those of the train split, sorted.

    Raises ValueError where a split holds a label outside the set.
    """
    feature = splits["train"].features["label"]
    labels = (
        task.labels or getattr(feature, "names", None) or sorted({str(v) for v in splits["train"]["label"]})
    )
    known = set(labels) | (set(range(len(labels))) if hasattr(feature, "names") else set())
    for split, data in splits.items():
        strange = sorted({str(v) for v in data["label"] if v not in known and str(v) not in known})
        if strange:
            raise ValueError(f"task {task.name}, {split}: " + unknown("label", strange[0], labels))
    return list(labels)


def fingerprint(splits: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Size and content hash of each split."""
    return {name: {"size": len(data), "sha256": _content_hash(data)} for name, data in splits.items()}


def _content_hash(data: Dataset) -> str:
    digest = hashlib.sha256()
    for column in sorted(data.column_names):
        for value in data[column]:
            digest.update(repr(value).encode())
            digest.update(b"\x1f")
    return digest.hexdigest()[:16]
