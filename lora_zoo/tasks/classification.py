"""Classification by a head on top of an encoder or a decoder."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import LabelledTask, Outcome, TaskType, check_finite, on_device
from lora_zoo.tasks.cutting import Example, Fitted, fitted


class HeadTask(TaskType, ABC):
    """Texts or pairs of texts, judged by a head on top of an encoder (or a decoder)."""

    columns = ("text", "label")
    auto_class = "AutoModelForSequenceClassification"
    has_head = True

    @classmethod
    def asks(cls, task: Task, example: Example) -> tuple[str, ...]:
        return tuple(example[name] for name in ("text", "text_pair") if name in example)

    def fitted(self, example: Example) -> Fitted:
        texts = self.asks(self.task, example)
        inputs, cut = fitted(self.tokenizer, *texts, room=self.task.max_length, side="right")
        return Fitted(inputs | {"labels": self.target(example["label"])}, cut)

    @abstractmethod
    def target(self, label: Any) -> int | float: ...

    @abstractmethod
    def answer(self, logits: Tensor, label: Any) -> Outcome: ...

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        inputs = self.collate([self.encode(row) for row in rows])
        inputs.pop("labels")
        logits = check_finite(model(**on_device(inputs, model)).logits.float().cpu())
        return [self.answer(z, row["label"]) for z, row in zip(logits, rows, strict=True)]


@TASK_TYPES.register("classification")
class Classification(LabelledTask, HeadTask):
    """Texts or pairs of texts in classes."""

    def head(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}

    @classmethod
    def outlined_head(cls, task: Task) -> dict[str, Any]:
        return {"num_labels": len(task.labels)} if task.labels else {}

    def answer(self, logits: Tensor, label: Any) -> Outcome:
        return self.judged(logits, label)
