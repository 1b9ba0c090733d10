"""Labels of a task: classes, each of which has a name and an id, or finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lora_zoo.config.schema import Task
from lora_zoo.core.errors import unknown

if TYPE_CHECKING:
    from datasets import Dataset


class Classes:
    """The names of a task's classes in the order of their ids; a cell of the data has one of these names.

    The order is that of `task.labels`, else that of the train split's ClassLabel, else that of the train
    split's names: as numbers where all are numbers. Raises ValueError where there is but one class, and where
    a split holds a cell of none.
    """

    def __init__(self, task: Task, splits: Mapping[str, Dataset]) -> None:
        column = splits["train"]
        self._features: list[str] | None = getattr(column.features["label"], "names", None)
        self.names = list(task.labels or self._features or _ordered(set(map(self.name, column["label"]))))
        self._ids = {name: number for number, name in enumerate(self.names)}
        for split, data in splits.items():
            strange = sorted({self.name(cell) for cell in data["label"]} - self._ids.keys())
            if strange:
                raise ValueError(f"task {task.name}, {split}: " + unknown("label", strange[0], self.names))
        if len(self.names) < 2:
            raise ValueError(
                f"task {task.name}: its labels are all {self.names[0]!r}; there is nothing to tell apart"
            )

    def name(self, cell: Any) -> str:
        """The name of a cell's class: its text, or what a ClassLabel column calls its number."""
        if self._features is not None and isinstance(cell, int) and 0 <= cell < len(self._features):
            return self._features[cell]
        return str(cell).strip()

    def id(self, cell: Any) -> int:
        """The id of a cell's class."""
        return self._ids[self.name(cell)]

    def id_of(self, name: Any) -> int:
        """The id of a class by its name. ValueError for a name that there is not."""
        if str(name) not in self._ids:
            raise ValueError(unknown("label", str(name), self.names))
        return self._ids[str(name)]


def _ordered(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=float) if all(map(is_finite, names)) else names


def check_numbers(task: Task, splits: Mapping[str, Dataset]) -> None:
    """Raise ValueError where a label is no finite number."""
    for split, data in splits.items():
        for row, label in enumerate(data["label"]):
            if not is_finite(label):
                raise ValueError(
                    f"task {task.name}, {split}: the label {label!r} of example {row} is no finite number, "
                    "which type=regression needs"
                )


def is_finite(label: Any) -> bool:
    """True for a number, or its text, that is neither infinite nor NaN."""
    try:
        return math.isfinite(float(label))
    except (TypeError, ValueError):
        return False
