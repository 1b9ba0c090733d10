"""Task types: examples as tensors, the model that they need, and the model's answers.

Every type gives `outcomes`: one record per example (item, prediction, reference, score and, but for
regression, nll and tokens: see `likelihood`), so that two variants can be compared on the same items; a
metric is computed from the same records.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lora_zoo.config.schema import Task
from lora_zoo.core.train_eval import without_gradients
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.tasks.cutting import IGNORED, Example, Fitted, least
from lora_zoo.tasks.judgeable import NotFinite
from lora_zoo.tasks.labels import Classes
from lora_zoo.tasks.likelihood import of_class

Outcome = dict[str, Any]


class TaskType(ABC):
    """One task with the tokenizer that it is read by. ValueError for data that it cannot use."""

    name: ClassVar[str]
    """Its name in TASK_TYPES."""
    columns: ClassVar[tuple[str, ...]]
    """The columns that it cannot do without."""
    sources: ClassVar[tuple[str, ...]] = ()
    """The columns of published data of which `prepared` makes these."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """Those of its columns that hold numbers; all others hold text."""
    judgements: ClassVar[tuple[str, ...]] = ()
    """The parts of its outcomes, 1 or 0, that metrics may read beside the prediction."""
    has_likelihood = True
    """True if its outcomes have an nll."""
    auto_class: ClassVar[str]
    """The transformers class that loads the model."""
    has_head = False
    """True where a head of the model gives the answers."""
    end: tuple[int, ...] = ()
    """The tokens with which every target ends, where the model is to say when it has answered."""
    generated = 0
    """The tokens that the model may add to an input."""

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        self.task, self.tokenizer = task, tokenizer
        self._check_length(task, tokenizer)

    def _check_length(self, task: Task, tokenizer: Any) -> None:
        needed = least(tokenizer) + max(len(self.end), 1)
        if task.max_length < needed:
            raise ValueError(
                f"task.max_length={task.max_length} has no room for an input and an answer; give {needed} "
                "or more"
            )

    @classmethod
    def read(cls, task: Task) -> Mapping[str, Any]:
        """The splits of data that this type reads by itself; {} for all that `datasets` reads."""
        return {}

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """The splits as read from their files with the columns of this type, and the task that they fit.

        ValueError where they have none that could become these.
        """
        return task, splits

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

    @classmethod
    def asks(cls, task: Task, example: Example) -> str | tuple[str, ...]:
        """The question of an example, as the model reads it: examples with the same are not independent."""
        return task.template.format(**example)

    def divided(self, split: str, data: Any) -> Any:
        """The examples of a split where they are not those of the file. ValueError where there are none."""
        return data

    @abstractmethod
    def fitted(self, example: Example) -> Fitted:
        """A training example within `task.max_length` tokens."""

    def fitted_input(self, example: Example) -> Fitted:
        """The part of an example that the model is given when it is judged."""
        return self.fitted(example)

    def encode(self, example: Example) -> Example:
        """Token ids, labels and, where the data have a column `task` of numbers, the task of one example."""
        return self.fitted(example).inputs | _task_of(example)

    @abstractmethod
    def answers(self, model: nn.Module, rows: list[Example]) -> Iterable[Outcome]:
        """Prediction, reference, score and, where there is a likelihood, nll and tokens of a batch's rows."""

    @abstractmethod
    def references(self, rows: list[Example]) -> list[Any]:
        """The reference of each item."""

    def described(self, rows: list[Example]) -> dict[str, Any]:
        """Facts on the answers of a split, for the record."""
        return {}

    def metric_arguments(self, metric: str) -> dict[str, Any]:
        """The metric's own arguments, as it takes them."""
        return dict(self.task.metric_arguments.get(metric, {}))

    def items(self, data: Any) -> list[Example]:
        """The examples of a split as they are judged."""
        return list(data)

    @without_gradients()
    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        """The model's answer to each example of a split, in evaluation mode, without gradients.

        ValueError where it answers with NaN or inf.
        """
        rows, size = self.items(data), self.task.eval_batch_size
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        answers = chain.from_iterable(self._of_its_tasks(model, batch) for batch in batches)
        return [{"item": row["item"]} | answer for row, answer in zip(rows, answers, strict=True)]

    def _of_its_tasks(self, model: nn.Module, rows: list[Example]) -> Iterable[Outcome]:
        """The answers to a batch's rows by adapters that know the rows' tasks."""
        told = [_task_of(row) for row in rows]
        ids = torch.tensor([own["task_ids"] for own in told]) if rows and all(told) else None
        with adapters_of(model).tasks(ids):
            yield from self.answers(model, rows)

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

    def _prompt(self, example: Example) -> str:
        return self.task.template.format(**example)


class LabelledTask(TaskType, ABC):
    """Examples with a label of a known set; predictions and references are the ids of its classes."""

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.classes = Classes(task, splits)
        self.labels = self.classes.names

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return list(range(len(self.labels))), list(range(len(self.labels)))

    def target(self, label: Any) -> int:
        """The id of a cell's class."""
        return self.classes.id(label)

    def judged(self, logits_C: Tensor, label: Any) -> Outcome:
        """The outcome of an example, of whose classes these are the logits."""
        prediction, reference = int(logits_C.argmax()), self.target(label)
        found = {"prediction": prediction, "reference": reference, "score": float(prediction == reference)}
        return found | of_class(logits_C, reference)

    def metric_arguments(self, metric: str) -> dict[str, Any]:
        """The same; classes are named in the task, and are ids to a metric."""
        given, of = super().metric_arguments(metric), self.classes.id_of
        if "pos_label" in given:
            given["pos_label"] = of(given["pos_label"])
        if "labels" in given:
            given["labels"] = [of(name) for name in given["labels"]]
        return given

    def references(self, rows: list[Example]) -> list[int]:
        return [self.target(row["label"]) for row in rows]

    def described(self, rows: list[Example]) -> dict[str, Any]:
        found = self.references(rows)
        return {"classes": {name: found.count(number) for number, name in enumerate(self.labels)}}


def _task_of(example: Example) -> dict[str, int]:
    """The example's task, for the adapters of a model; {} where the data do not number it."""
    task = example.get("task")
    return {"task_ids": task} if isinstance(task, int) and not isinstance(task, bool) else {}


def check_finite(logits: Tensor) -> Tensor:
    """The logits. ValueError where they hold NaN or inf, of which an argmax would make an answer."""
    if not bool(logits.isfinite().all()):
        raise NotFinite("the model answers with NaN or inf; there is nothing to judge")
    return logits


def on_device(inputs: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in inputs.items()}
