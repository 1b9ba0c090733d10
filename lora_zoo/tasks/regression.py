"""Regression by a head with one output."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import Outcome
from lora_zoo.tasks.classification import HeadTask
from lora_zoo.tasks.cutting import Example
from lora_zoo.tasks.labels import check_numbers


@TASK_TYPES.register("regression")
class Regression(HeadTask):
    """The head learns labels standardised on the train split; answers are in the labels' own unit.

    Without it a head's small rate spends the run on finding the mean. `score` is the negative squared error.
    """

    numbers = ("label",)
    has_likelihood = False

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        check_numbers(task, splits)
        labels = torch.tensor([float(label) for label in splits["train"]["label"]], dtype=torch.float64)
        if labels.min() == labels.max():
            raise ValueError(
                f"task {task.name}: its labels are all {labels[0].item():g}; there is nothing to tell apart"
            )
        self.mean, self.std = float(labels.mean()), float(labels.std())

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return [1.0, 2.5, 4.0], [1.0, 2.0, 4.5]

    def about(self) -> dict[str, Any]:
        return {"standardised": {"mean": self.mean, "std": self.std}}

    def head(self) -> dict[str, Any]:
        return self.outlined_head(self.task)

    @classmethod
    def outlined_head(cls, task: Task) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def target(self, label: Any) -> float:
        return (float(label) - self.mean) / self.std

    def references(self, rows: list[Example]) -> list[float]:
        return [float(row["label"]) for row in rows]

    def described(self, rows: list[Example]) -> dict[str, Any]:
        found = self.references(rows)
        return {"labels": {"least": min(found), "mean": sum(found) / len(found), "most": max(found)}}

    def answer(self, logits: Tensor, label: Any) -> Outcome:
        prediction, reference = float(logits[0]) * self.std + self.mean, float(label)
        return {"prediction": prediction, "reference": reference, "score": -((prediction - reference) ** 2)}
