"""The splits of a task as `datasets.Dataset`s with the columns that its type works on.

Local files, Hub data sets and the generated data sets all come out alike: `prompt` and `target`, or `text`
(with `text_pair`) and `label`; every split has an `item` column, the example's number.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_zoo.config.schema import FOLDERS, SPLITS, Task, file_of
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.config.template import check_template, fields_of
from lora_zoo.core.errors import reason, unknown
from lora_zoo.core.generators import GENERATORS, complete_options
from lora_zoo.tasks.labels import is_finite

if TYPE_CHECKING:
    from datasets import Dataset

# One data set for every run and seed: what differs between seeds is the order in which it is seen.
_DATA_SEED = 0


class Splits(dict[str, "Dataset"]):
    """The splits of a task by name, in `SPLITS`' order, and how `task.sizes` cut each that it did."""

    cuts: Mapping[str, Mapping[str, int]] = {}


def load_splits(task: Task, judged: Collection[str] = SPLITS) -> Splits:
    """Every split that the task has; train and those that are `judged` are checked.

    Of a task that is learned `by_heart` each of them is the train split. Raises ValueError for a missing
    column, an empty split or an empty cell.
    """
    _check_names(task)
    raw = _generated(task) if task.dataset in GENERATORS else _load(task)
    if "train" not in raw:
        has = ", ".join(raw) or "none"
        raise ValueError(
            f"task {task.name}: the data has no train split; it has {has} (task.splits names them)"
        )
    task, raw = TASK_TYPES[task.type].prepared(task, raw)
    if task.by_heart:
        raw = dict.fromkeys(SPLITS, raw["train"])
    checked = {"train", *judged}
    named = {name: _by_role(task, name, data, name in checked) for name, data in raw.items()}
    for name in checked & named.keys():
        _check_cells(task, name, named[name])  # errors number examples as in the file
    if "validation" not in named:
        named |= _held_out(task, named["train"])
    found = Splits({name: _sized(task, name, named[name]) for name in SPLITS if name in named})
    found.cuts = {name: cut for name, data in found.items() if (cut := _cut(named[name], data))}
    return found


def _held_out(task: Task, train: Dataset) -> dict[str, Dataset]:
    """A part of what is asked, with all examples that ask it: none of it is asked in training."""
    from datasets import Dataset

    asks, groups = TASK_TYPES[task.type].asks, dict[Any, list[int]]()
    for number, row in enumerate(train):
        groups.setdefault(asks(task, row), []).append(number)
    held = math.ceil(task.validation_fraction * len(groups))
    if not 0 < held < len(groups):
        of = f"{len(train)} training examples" + f" that ask {len(groups)} things" * (
            len(groups) < len(train)
        )
        raise ValueError(
            f"task {task.name}: task.validation_fraction={task.validation_fraction} of {of} "
            "leaves one split empty; give more data, or a validation file"
        )
    asked = Dataset.from_dict({"rows": list(groups.values())})
    parts = asked.train_test_split(test_size=task.validation_fraction, seed=0)
    rows = {name: list(chain.from_iterable(parts[name]["rows"])) for name in ("train", "test")}
    return {"train": train.select(rows["train"]), "validation": train.select(rows["test"])}


def _generated(task: Task) -> dict[str, Dataset]:
    from datasets import Dataset

    make, options = GENERATORS.find(task.dataset), complete_options(task.dataset, task.options)
    sizes = {name: task.sizes[name] for name in SPLITS if name in task.sizes}
    return {name: Dataset.from_list(make(name, size, _DATA_SEED, **options)) for name, size in sizes.items()}


def _load(task: Task) -> dict[str, Dataset]:
    import datasets
    from datasets import load_dataset

    files = {split: str(file_of(task, name)) for split, name in task.data_files.items()}
    where = {"data_dir": str(Path(task.data_dir).expanduser())} if task.data_dir and not files else {}
    arguments = {**_as_text(task), **task.options, **where, **({"data_files": files} if files else {})}
    _readable(task, files)
    heard = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it says of a bad file is in the error as well
    try:
        loaded = TASK_TYPES[task.type].read(task) or load_dataset(task.dataset, task.config_name, **arguments)
        if not hasattr(loaded, "keys"):
            raise ValueError("task.options.split gives one split; name the splits with task.splits")
    except Exception as error:  # whatever a reader of files or the Hub may raise; no run has begun
        raise ValueError(
            f"task {task.name}: cannot load task.dataset={task.dataset}: {_reason(error)}"
        ) from error
    finally:
        datasets.logging.set_verbosity(heard)
    for split, name in task.splits.items():
        if name not in loaded:
            raise ValueError(f"task {task.name}, task.splits.{split}: " + unknown("split", name, loaded))
    given = task.splits.values()  # what has one role by name has no other by default
    names = {s: task.splits.get(s, s) for s in SPLITS if s in task.splits or s not in given}
    return {split: loaded[name] for split, name in names.items() if name in loaded}


def _as_text(task: Task) -> dict[str, Any]:
    """Arguments for a reader that guesses types (csv): a text is what the file says, be it 007 or NA."""
    if task.dataset != "csv":
        return {}
    kind = TASK_TYPES[task.type]
    names = {name: name for name in (*kind.columns, *kind.sources, "text_pair", *fields_of(task.template))}
    roles = task.columns or names
    texts = {old: str for new, old in roles.items() if new not in kind.numbers}
    missing = {"keep_default_na": False, "na_values": ["NaN"]}  # as writers of tables leave an empty cell
    return {"converters": texts, **missing}


def _readable(task: Task, files: Mapping[str, str]) -> None:
    """Text files hold text in UTF-8, and more than nothing. ValueError with file and byte otherwise."""
    for split, name in files.items():
        path = Path(name)
        if not path.is_file():
            continue
        if not path.stat().st_size:
            raise ValueError(f"task {task.name}: its {split} file {name} is empty")
        if task.dataset in ("csv", "json", "text") and "encoding" not in task.options and not _packed(path):
            try:
                for _ in path.open(encoding="utf-8"):
                    pass
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"task {task.name}: its {split} file {name} is no UTF-8 text ({error.reason} "
                    f"0x{error.object[error.start]:02x}); convert it, or give +task.options.encoding=…"
                ) from error


def _packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))


def _reason(error: BaseException) -> str:
    """The bottom of an exception, in one line."""
    while error.__cause__ is not None and type(error).__name__.startswith("DatasetGeneration"):
        error = error.__cause__
    return reason(error)


def _by_role(task: Task, split: str, data: Dataset, checked: bool) -> Dataset:
    """A split's columns by their role, texts as text. ValueError where it is `checked` and lacks one."""
    from datasets import Value

    roles = {old: new for new, old in task.columns.items() if checked or old in data.column_names}
    if checked:
        _check_columns(task, split, data.column_names)
    data = data.select_columns(list(roles)) if roles else data
    data = data.rename_columns({old: new for old, new in roles.items() if old != new})
    if checked and "prompt" in TASK_TYPES[task.type].columns:
        check_template(task.template, data.column_names)
    for column in set(data.column_names) - {"label"}:
        if str(getattr(data.features[column], "dtype", "")).startswith(("int", "uint")):
            data = data.cast_column(column, Value("string"))
        if column in _optional(task) and None in data[column]:
            data = data.map(lambda row, name=column: {name: row[name] or ""})
    return data


def _optional(task: Task) -> set[str]:
    """The columns of the template that may be empty: what the type cannot do without may not."""
    return set(task.columns) - {*TASK_TYPES[task.type].columns, "text_pair"}


def _sized(task: Task, split: str, data: Dataset) -> Dataset:
    size = task.sizes.get("train" if task.by_heart else split)
    if size and size < len(data):
        data = data.shuffle(seed=_DATA_SEED, keep_in_memory=True) if _by_class(data) else data
        data = data.select(range(size))
    return data.add_column("item", list(range(len(data))))


def _by_class(data: Dataset) -> bool:
    """True for a folder of classes, whose first rows are all of one; tables are taken as they are."""
    return data.builder_name in FOLDERS


def _cut(whole: Dataset, data: Dataset) -> dict[str, int]:
    """The number of rows left out, and of those that were drawn at random; {} where all are there."""
    left = len(whole) - len(data)
    return ({"left_out": left} | ({"drawn": len(data)} if _by_class(whole) else {})) if left else {}


def _check_names(task: Task) -> None:
    """Raises ValueError where `task.columns`, known before any data, lacks one that the type needs."""
    kind = TASK_TYPES[task.type]
    for needed in kind.columns if task.columns and not kind.sources else ():
        if needed not in task.columns:
            given = ", ".join(task.columns)
            raise ValueError(
                f"task.columns lacks {needed}, which type={task.type} needs; it has {given}: "
                f"add task.columns.{needed}=COLUMN"
            )


def _check_columns(task: Task, split: str, known: list[str]) -> None:
    for column in task.columns.values():
        if column not in known:
            raise ValueError(f"task {task.name}, {split}: " + unknown("column", column, known))
    if task.columns:
        return
    for column in TASK_TYPES[task.type].columns:
        if column not in known:
            raise ValueError(
                f"task {task.name}, {split}: type={task.type} needs a column {column}; the data has "
                f"{', '.join(known)}: give task.columns.{column}=…"
            )
    if "item" in known:
        raise ValueError(
            f"task {task.name}, {split}: choose columns with task.columns; item is a name of ours"
        )


def _check_cells(task: Task, split: str, data: Dataset) -> None:
    """Raises ValueError for an empty split or cell, and for a cell that its column's role cannot take."""
    if not len(data):
        raise ValueError(f"task {task.name}: the {split} split is empty")
    if "label" in data.column_names and not any(label != -1 for label in data["label"]):
        raise ValueError(
            f"task {task.name}, {split}: all its labels are -1, which hides them; name one that has some, "
            f"task.splits.{split}=validation"
        )
    used = task.columns or (*TASK_TYPES[task.type].columns, "text_pair")
    optional = _optional(task)
    for column in filter(used.__contains__, data.column_names):
        where = f"task {task.name}, {split}: column {task.columns.get(column, column)} "
        for row, value in enumerate(data[column]):
            if _is_empty(value) and column not in optional:
                raise ValueError(f"{where}has empty values, the first in example {row}")
            if isinstance(value, float) and not is_finite(value):
                raise ValueError(f"{where}holds {value} in example {row}; it must be a finite number")
            if not isinstance(value, (str, int, float) if column == "label" else str):
                raise ValueError(f"{where}holds {value!r} in example {row}; it must be a text")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def fingerprint(splits: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Size and content hash of each split."""
    return {name: {"size": len(data), "sha256": _content_hash(data)} for name, data in splits.items()}


def _content_hash(data: Dataset) -> str:
    values = (repr(value) for column in sorted(data.column_names) for value in data[column])
    return hashlib.sha256("".join(f"{value}\x1f" for value in values).encode()).hexdigest()[:16]
