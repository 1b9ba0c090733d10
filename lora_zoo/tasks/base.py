"""Task types: examples as tensors, the model that they need, and the model's answers.

Every type gives `outcomes`: one record per example (item, prediction, reference, score), so that two variants
can be compared on the same items; a metric is computed from the same records.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lora_zoo.config.schema import Task
from lora_zoo.tasks.labels import label_set

Example = dict[str, Any]
Outcome = dict[str, Any]
IGNORED = -100


class TaskType(ABC):
    """One task with the tokenizer that it is read by."""

    name: ClassVar[str]
    """Its name in TASK_TYPES."""
    columns: ClassVar[tuple[str, ...]]
    """The columns that it cannot do without."""
    auto_class: ClassVar[str]
    """The transformers class that loads the model."""

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        self.task, self.tokenizer = task, tokenizer

    @abstractmethod
    def made_up(self) -> tuple[list[Any], list[Any]]:
        """Predictions and references as `outcomes` gives them, to try a metric on."""

    def head(self) -> dict[str, Any]:
        """Entries of the model's configuration for its head."""
        return {}

    @classmethod
    def outlined_head(cls, task: Task) -> dict[str, Any]:
        """The same as far as the task's own configuration tells it, without any data."""
        return {}

    @abstractmethod
    def encode(self, example: Example) -> Example:
        """Token ids and labels of one training example."""

    @abstractmethod
    def answers(self, model: nn.Module, rows: list[Example]) -> Iterable[Outcome]:
        """Prediction, reference and score of each row of a batch."""

    @torch.inference_mode()
    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        """The model's answer to each example of a split, in evaluation mode, without gradients."""
        rows, size = list(data), self.task.eval_batch_size
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        answers = chain.from_iterable(self.answers(model, batch) for batch in batches)
        return [{"item": row["item"]} | answer for row, answer in zip(rows, answers, strict=True)]

    def collate(self, batch: list[Example]) -> dict[str, Tensor]:
        """Pad on the right, labels with `IGNORED`."""
        pads = {"labels": IGNORED, "attention_mask": 0, "token_type_ids": 0}
        return {
            name: pad_sequence(
                [torch.tensor(example[name]) for example in batch],
                batch_first=True,
                padding_value=pads.get(name, self.tokenizer.pad_token_id),
            )
            if isinstance(batch[0][name], list)
            else torch.tensor([example[name] for example in batch])
            for name in batch[0]
        }

    def about(self) -> dict[str, Any]:
        """Facts for a model that is made of the run, beside its head."""
        return {}

    def encoded(self, data: Any) -> list[Example]:
        """A split as training examples."""
        return [self.encode(example) for example in data]

    def _prompt_ids(self, example: Example) -> list[int]:
        text = self.task.template.format(**example)
        return self.tokenizer(text, truncation=True, max_length=self.task.max_length)["input_ids"]


class LabelledTask(TaskType, ABC):
    """Examples with a label of a known set; predictions and references are its numbers."""

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.labels = label_set(task, splits)

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return list(range(len(self.labels))), list(range(len(self.labels)))

    def target(self, label: Any) -> int:
        return label if isinstance(label, int) and label not in self.labels else self.labels.index(str(label))

    def judged(self, prediction: int, label: Any) -> Outcome:
        reference = self.target(label)
        return {"prediction": prediction, "reference": reference, "score": float(prediction == reference)}


def continuation(tokenizer: Any, text: str) -> list[int]:
    """The tokens of `text` as it continues a prompt: a space before it, where the tokenizer keeps spaces."""
    return tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


def continued(prompt: list[int], target: list[int], limit: int | None = None) -> Example:
    """Prompt and target in one sequence, the prompt's labels ignored; too long a prompt loses its start."""
    if limit is not None and len(prompt) + len(target) > limit:
        prompt = prompt[-max(limit - len(target), 1) :]
    ids = (prompt + target)[:limit]
    labels = ([IGNORED] * len(prompt) + target)[:limit]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def grouped(data: Any) -> list[Example]:
    """One example per distinct prompt, with all its targets as a list."""
    groups: dict[str, Example] = {}
    for row in data:
        groups.setdefault(row["prompt"], row | {"target": []})["target"].append(row["target"])
    return list(groups.values())


def on_device(inputs: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in inputs.items()}
