"""Image classification by a head on top of a model of images, such as ViT."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.classification import Classification
from lora_zoo.tasks.cutting import Example, Fitted


@TASK_TYPES.register("image_classification")
class ImageClassification(Classification):
    """Images in classes, sized and normalised by the model folder's image processor.

    Nothing is augmented. An image is kept as the bytes of its file (in base 64) and decoded when a batch is
    made of it.
    """

    columns = ("image", "label")
    auto_class = "AutoModelForImageClassification"

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """The column of images as text. ValueError for an image that cannot be read."""
        column = task.columns.get("image", "image")
        return task, {
            name: _as_text(f"task {task.name}, {name}", data, column) for name, data in splits.items()
        }

    @classmethod
    def asks(cls, task: Task, example: Example) -> tuple[str, ...]:
        return (example["image"],)

    def _check_length(self, task: Task, tokenizer: Any) -> None:
        """An image has no length."""

    def fitted(self, example: Example) -> Fitted:
        return Fitted({"image": example["image"], "labels": self.target(example["label"])}, False)

    def collate(self, batch: list[Example]) -> dict[str, Tensor]:
        images = [_opened(base64.b64decode(example["image"])).convert("RGB") for example in batch]
        pixels = self.tokenizer(images=images, return_tensors="pt")["pixel_values"]
        rest = {
            name: torch.tensor([example[name] for example in batch]) for name in batch[0] if name != "image"
        }
        return {"pixel_values": pixels, **rest}


def _opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def _as_text(where: str, data: Any, column: str) -> Any:
    """The split with its images as the text of their files' bytes."""
    import datasets

    if column not in data.column_names:
        return data  # which is said where columns are looked up
    if not isinstance(data.features[column], datasets.Image):
        raise ValueError(f"{where}: the column {column} holds {data.features[column]}, not images")
    texts = []
    for number, cell in enumerate(data.cast_column(column, datasets.Image(decode=False))[column]):
        try:
            content = cell["bytes"] or Path(cell["path"]).read_bytes()
            _opened(content).verify()
        except Exception as error:  # a damaged file raises what it pleases
            name = Path((cell or {}).get("path") or "").name
            raise ValueError(
                f"{where}: image {number} {name} cannot be read: {type(error).__name__}"
            ) from error
        texts.append(base64.b64encode(content).decode())
    text = datasets.Value("large_string")
    return data.remove_columns(column).add_column(column, texts, feature=text)
