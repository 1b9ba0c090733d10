"""Labels of a task: the set of classes, or finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_zoo.config.schema import Task
from lora_zoo.core.errors import unknown

if TYPE_CHECKING:
    from datasets import Dataset


def label_set(task: Task, splits: Mapping[str, Dataset]) -> list[str]:
    """The labels in the order of their ids: the declared ones, else those of the train split, sorted.

    Raises ValueError where a split holds a label outside the set.
    """
    feature, found = splits["train"].features["label"], splits["train"]["label"]
    labels = task.labels or getattr(feature, "names", None) or sorted(set(map(str, found)))
    known = set(labels) | (set(range(len(labels))) if hasattr(feature, "names") else set())
    for split, data in splits.items():
        strange = sorted({str(v) for v in data["label"] if v not in known and str(v) not in known})
        if strange:
            raise ValueError(f"task {task.name}, {split}: " + unknown("label", strange[0], labels))
    if len(labels) < 2:
        raise ValueError(
            f"task {task.name}: its labels are all {labels[0]!r}; there is nothing to tell apart"
        )
    return list(labels)


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
