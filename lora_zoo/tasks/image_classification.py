"""Image classification by a head on top of a model of images, such as ViT."""

import io

from PIL import Image
from torch import Tensor

from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.media import FileClassification


@TASK_TYPES.register("image_classification")
class ImageClassification(FileClassification):
    """Images in classes, sized and normalised by the model folder's image processor; nothing is augmented."""

    columns = ("image", "label")
    auto_class = "AutoModelForImageClassification"
    holds, feature = "image", "Image"

    @classmethod
    def check(cls, content: bytes) -> None:
        _opened(content).verify()

    def inputs(self, contents: list[bytes]) -> dict[str, Tensor]:
        images = [_opened(content).convert("RGB") for content in contents]
        return {"pixel_values": self.tokenizer(images=images, return_tensors="pt")["pixel_values"]}


def _opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))
