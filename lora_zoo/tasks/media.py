"""Classification of what lies in files (images, sounds), kept as the text of the files' bytes.

A file is decoded when a batch is made of it.
"""

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lora_zoo.config.schema import Task
from lora_zoo.tasks.classification import Classification
from lora_zoo.tasks.cutting import Example, Fitted


class FileClassification(Classification, ABC):
    """Files in classes; a subclass says what they are and how they become inputs of a model."""

    holds: ClassVar[str]
    """The column of the files: what one of them is called."""
    feature: ClassVar[str]
    """The feature of `datasets` that such a column has."""

    @classmethod
    @abstractmethod
    def check(cls, content: bytes) -> None:
        """Raise what it pleases for the bytes of a file that cannot be read."""

    @abstractmethod
    def inputs(self, contents: list[bytes]) -> dict[str, Tensor]:
        """The model's arguments for a batch of files."""

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """The column of files as text. ValueError for a file that cannot be read."""
        column = task.columns.get(cls.holds, cls.holds)
        return task, {
            name: cls._as_text(f"task {task.name}, {name}", data, column) for name, data in splits.items()
        }

    @classmethod
    def asks(cls, task: Task, example: Example) -> tuple[str, ...]:
        return (example[cls.holds],)

    def _check_length(self, task: Task, tokenizer: Any) -> None:
        """A file has no length in tokens."""

    def fitted(self, example: Example) -> Fitted:
        return Fitted({self.holds: example[self.holds], "labels": self.target(example["label"])}, False)

    def collate(self, batch: list[Example]) -> dict[str, Tensor]:
        made = self.inputs([base64.b64decode(example[self.holds]) for example in batch])
        rest = {
            name: torch.tensor([example[name] for example in batch])
            for name in batch[0]
            if name != self.holds
        }
        return {**made, **rest}

    @classmethod
    def _as_text(cls, where: str, data: Any, column: str) -> Any:
        """The split with its files as the text of their bytes."""
        import datasets

        if column not in data.column_names:
            return data  # which is said where columns are looked up
        kind, holds = getattr(datasets, cls.feature), data.features[column]
        if isinstance(holds, kind):
            data = data.cast_column(column, kind(decode=False))
        elif not (isinstance(holds, dict) and {*holds} == {"bytes", "path"}):
            raise ValueError(f"{where}: the column {column} holds {holds}, not {cls.feature.lower()}s")
        texts = []
        for number, cell in enumerate(data[column]):
            try:
                content = cell["bytes"] or Path(cell["path"]).read_bytes()
                cls.check(content)
            except Exception as error:  # a damaged file raises what it pleases
                name = Path((cell or {}).get("path") or "").name
                raise ValueError(
                    f"{where}: {cls.holds} {number} {name} cannot be read: {_reason(error)}"
                ) from error
            texts.append(base64.b64encode(content).decode())
        text = datasets.Value("large_string")
        return data.remove_columns(column).add_column(column, texts, feature=text)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else type(error).__name__
