"""Classification by a head on top of an encoder or a decoder."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import Example, Outcome, TaskType, on_device
from lora_zoo.tasks.labels import label_set


class HeadTask(TaskType, ABC):
    """Texts or pairs of texts, judged by a head on top of an encoder (or a decoder)."""

    columns = ("text", "label")
    auto_class = "AutoModelForSequenceClassification"

    def encode(self, example: Example) -> Example:
        pair = (example["text"], example["text_pair"]) if "text_pair" in example else (example["text"],)
        return dict(self.tokenizer(*pair, truncation=True, max_length=self.task.max_length)) | {
            "labels": self.target(example["label"])
        }

    @abstractmethod
    def target(self, label: Any) -> int | float: ...

    @abstractmethod
    def answer(self, logits: Tensor, label: Any) -> Outcome: ...

    @torch.inference_mode()
    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        found = []
        for rows in self._batches(data):
            inputs = self.collate([self.encode(row) for row in rows])
            inputs.pop("labels")
            logits = model(**on_device(inputs, model)).logits.float().cpu()
            found += [
                {"item": r["item"]} | self.answer(z, r["label"]) for r, z in zip(rows, logits, strict=True)
            ]
        return found


@TASK_TYPES.register("classification")
class Classification(HeadTask):
    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.labels = label_set(task, splits)

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return list(range(len(self.labels))), list(range(len(self.labels)))

    def head(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}

    @classmethod
    def outlined_head(cls, task: Task) -> dict[str, Any]:
        return {"num_labels": len(task.labels)} if task.labels else {}

    def target(self, label: Any) -> int:
        return label if isinstance(label, int) and label not in self.labels else self.labels.index(str(label))

    def answer(self, logits: Tensor, label: Any) -> Outcome:
        prediction, reference = int(logits.argmax()), self.target(label)
        return {"prediction": prediction, "reference": reference, "score": float(prediction == reference)}
