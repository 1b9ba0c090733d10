"""Classification of sounds by a head on top of a model of speech, such as Wav2Vec2 or AST.

Shapes: B sounds, L samples.
"""

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.cutting import Example, Fitted
from lora_zoo.tasks.media import FileClassification

CODES = {1: "u1", 2: "<i2", 4: "<i4"}
"""Bytes of a sample -> how it is stored."""


class Sound(NamedTuple):
    """Samples (L,) between -1 and 1, the mean of all channels, and how many of them are a second."""

    samples_L: NDArray[np.float32]
    rate: int


@TASK_TYPES.register("audio_classification")
class AudioClassification(FileClassification):
    """Sounds in classes, as the model folder's feature extractor gives them; nothing is cut or augmented.

    Files are WAV of whole numbers, of 8, 16 or 32 bits, at the rate of samples that the model was trained on.
    """

    columns = ("audio", "label")
    auto_class = "AutoModelForAudioClassification"
    holds, feature = "audio", "Audio"

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.rate = getattr(tokenizer, "sampling_rate", None)

    @classmethod
    def read(cls, task: Task) -> Mapping[str, Any]:
        """`audiofolder`'s SPLIT/CLASS/NAME.wav, for which `datasets` would need a package of its own.

        ValueError where there is none.
        """
        if task.dataset != "audiofolder":
            return {}
        if not task.data_dir:
            raise ValueError("audiofolder needs a folder of train/CLASS/NAME.wav; give task.data_dir")
        files = sorted(Path(task.data_dir).expanduser().glob("*/*/*.wav"))
        splits = {file.parent.parent.name: list[Path]() for file in files}
        for file in files:
            splits[file.parent.parent.name].append(file)
        if not splits:
            raise ValueError(f"there is no train/CLASS/NAME.wav in task.data_dir={task.data_dir}")
        return {split: _of_files(own, files) for split, own in splits.items()}

    @classmethod
    def check(cls, content: bytes) -> None:
        sound(content)

    def fitted(self, example: Example) -> Fitted:
        """The example as it is. ValueError for a sound at another rate than the model's."""
        found = sound(base64.b64decode(example["audio"])).rate
        if found != self.rate:
            raise ValueError(
                f"task {self.task.name}: example {example['item']} has {found} samples a second, and the "
                f"model reads {self.rate}: resample the files"
            )
        return super().fitted(example)

    def inputs(self, contents: list[bytes]) -> dict[str, Tensor]:
        samples = [sound(content).samples_L for content in contents]
        return dict(self.tokenizer(samples, sampling_rate=self.rate, padding=True, return_tensors="pt"))


def _of_files(files: Sequence[Path], every: Sequence[Path]) -> Any:
    """A split of these files; its classes are the folders of all."""
    import datasets

    classes = datasets.ClassLabel(names=sorted({file.parent.name for file in every}))
    cells = {
        "audio": [{"bytes": None, "path": str(file)} for file in files],
        "label": [file.parent.name for file in files],
    }
    held = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features(audio=held, label=classes)
    return datasets.Dataset.from_dict(
        cells, info=datasets.DatasetInfo(features=features, builder_name="audiofolder")
    )


def sound(content: bytes) -> Sound:
    """The sound in the bytes of a WAV file. ValueError for another form, and for one without a sample."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        why = str(error) or "it ends too soon"
        raise ValueError(f"it is no WAV file of whole numbers ({why})") from error
    if width not in CODES or not frames:
        raise ValueError(f"it has {8 * width} bits a sample" if frames else "it has no sample")
    stored = np.frombuffer(frames, CODES[width]).astype(np.float64).reshape(-1, channels)
    half = 2.0 ** (8 * width - 1)
    return Sound(((stored.mean(1) - half * (width == 1)) / half).astype(np.float32), rate)
