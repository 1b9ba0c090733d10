"""Classification of sounds: the Hub's two layouts, a tiny Wav2Vec2 against its own extractor, a run."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.bounded_json import read_json
from lora_zoo.models.compare import logits
from lora_zoo.models.merging import merge
from lora_zoo.tasks.audio_classification import sound
from lora_zoo.tasks.data import fingerprint, load_splits
from tests.processes import run

KINDS = ("deep", "shrill")


def wav(samples: Any, *, width: int = 2, channels: int = 1, rate: int = 8000) -> bytes:
    """Samples between -1 and 1 as a file; those of channels take turns."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        whole = np.round(np.asarray(samples) * (2 ** (8 * width - 1) - 1) + (128 if width == 1 else 0))
        file.writeframes(whole.astype({1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return made.getvalue()


def tone(number: int) -> bytes:
    """A tone of 200 or 2000 Hz, each of its own length."""
    times = np.arange(600 + 10 * number) / 8000
    return wav(0.5 * np.sin(2 * np.pi * (200, 2000)[number % 2] * times))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wav2Vec2 without a head, that reads 8,000 samples a second."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4)}
    more = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    torch.manual_seed(0)
    config = Wav2Vec2Config(**sizes, **convolutions, **more, apply_spec_augment=False, layerdrop=0.0)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for number, split in enumerate(("train",) * 16 + ("test",) * 4):
        path = folder / split / KINDS[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tone(number))
    return folder


def task(**changes: Any) -> Task:
    usual: dict[str, Any] = {"name": "sounds", "type": "audio_classification", "dataset": "audiofolder"}
    usual |= {"columns": {"audio": "audio", "label": "label"}, "metrics": ["accuracy"], "lr": 1e-2}
    return Task(**(usual | {"validation_fraction": 0.25, "eval_batch_size": 3} | changes))


def test_a_sound_is_the_mean_of_its_channels_between_minus_one_and_one() -> None:
    for width, least in ((1, 1 / 127), (2, 1e-4), (4, 1e-6)):
        found = sound(wav([1, 0, -1, 0, 0, 0.5], width=width, channels=2, rate=4))
        assert found.rate == 4 and found.samples_L.dtype == np.float32
        assert np.abs(found.samples_L - [0.5, -0.5, 0.25]).max() < least
    for content, says in ((b"RIFF", "no WAV file"), (wav([]), "no sample"), (b"", "ends too soon")):
        with pytest.raises(ValueError, match=says):
            sound(content)


def test_a_folder_is_judged_as_the_models_own_extractor_and_classes_do(sounds: Path, speech: Path) -> None:
    mine = task(data_dir=str(sounds))
    splits, extractor = load_splits(mine), AutoFeatureExtractor.from_pretrained(speech)
    kind = TASK_TYPES["audio_classification"](mine, extractor, splits)
    assert kind.labels == list(KINDS)
    torch.manual_seed(0)
    model = AutoModelForAudioClassification.from_pretrained(speech, **kind.head()).eval()
    outcomes = kind.outcomes(model, splits["test"])
    contents = [base64.b64decode(row["audio"]) for row in splits["test"]]
    assert contents == [tone(number) for number in (16, 18, 17, 19)]
    for content, outcome, reference in zip(contents, outcomes, (0, 0, 1, 1), strict=True):
        alone = extractor(sound(content).samples_L, sampling_rate=8000, return_tensors="pt")
        log_p = model(**alone).logits[0].log_softmax(-1)
        assert outcome["reference"] == reference and outcome["prediction"] == int(log_p.argmax())
        assert outcome["nll"] == pytest.approx(-log_p[reference].item(), rel=1e-4), "padding is not heard"
    other = Wav2Vec2FeatureExtractor(sampling_rate=16000)
    kind = TASK_TYPES["audio_classification"](mine, other, splits)
    with pytest.raises(ValueError, match="has 8000 samples a second, and the model reads 16000: resample"):
        kind.encode(splits["train"][0])


def test_sizes_draw_a_folders_files_from_all_classes(sounds: Path) -> None:
    few = load_splits(task(data_dir=str(sounds), sizes={"test": 2}))
    assert few.cuts == {"test": {"left_out": 2, "drawn": 2}} and {*few["test"]["label"]} == {0, 1}


def test_a_table_with_sounds_in_it_holds_the_same(sounds: Path, tmp_path: Path) -> None:
    """Parquet, as the Hub keeps sounds: their bytes in the table, classes by number."""
    folder = load_splits(task(data_dir=str(sounds)))
    columns = {"audio": "speech", "label": "word"}
    for split in ("train", "test"):
        files = sorted((sounds / split).glob("*/*.wav"))
        cells = {
            "speech": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
            "word": [KINDS.index(file.parent.name) for file in files],
        }
        held = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        made = datasets.Dataset.from_dict(
            cells, datasets.Features(speech=held, word=datasets.ClassLabel(names=list(KINDS)))
        )
        made.cast_column("speech", datasets.Audio()).to_parquet(tmp_path / f"{split}.parquet")
    files = {"train": "train.parquet", "test": "test.parquet"}
    table = load_splits(task(dataset="parquet", data_dir=str(tmp_path), data_files=files, columns=columns))
    assert fingerprint(table) == fingerprint(folder)  # wherever the files lie


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data_dir": None}, "give task.data_dir"),
        ({"data_dir": "nothing"}, "there is no train/CLASS/NAME.wav in task.data_dir="),
        ({"data_dir": "damaged"}, "train: audio 0 1.wav cannot be read: it is no WAV file"),
    ],
)
def test_what_is_no_folder_of_sounds_is_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "damaged" / "train" / "deep").mkdir(parents=True)
    (tmp_path / "damaged" / "train" / "deep" / "1.wav").write_bytes(b"RIFF, but nothing else")
    where = changes["data_dir"] and str(tmp_path / changes["data_dir"])
    with pytest.raises(ValueError, match=says) as error:
        load_splits(task(data_dir=where))
    assert "\n" not in str(error.value)


def test_a_run_learns_and_its_merged_model_is_transformers_own(
    sounds: Path, speech: Path, tmp_path: Path
) -> None:
    words = f"+variant=lora rank=2 lr=2e-2 task=audio_classification task.data_dir={sounds} model={speech}"
    more = "task.validation_fraction=0.25 batch_size=6 steps=30 tracking=none threads=1"
    done = run(*words.split(), *more.split(), at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/result.json"))
    record = read_json(folder / "result.json")
    assert record["metrics"]["test"]["accuracy"] == 1 > record["zero_shot"]["test"]["accuracy"]
    assert {"classifier.weight", "projector.weight"} <= {*record["parameters"]["in_full"]}
    assert merge(folder, tmp_path / "merged").difference < 1e-5
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == {0: "deep", 1: "shrill"}
    AutoFeatureExtractor.from_pretrained(tmp_path / "merged")


def test_a_model_of_spectrograms_is_compared_on_one() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ASTForAudioClassification(ASTConfig(**sizes, max_length=32, num_mel_bins=16, patch_size=8))
    assert logits(model).shape == (2, 2)
