"""Image classification: the Hub's two layouts, a tiny ViT against its own processor, a whole run."""

import base64
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.bounded_json import read_json
from lora_zoo.models.activations import embedded_inputs_learn, saved_bytes
from lora_zoo.models.merging import merge
from lora_zoo.tasks.data import fingerprint, load_splits
from tests.processes import run

KINDS = ("cat", "dog")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT, as people give one to this project: without a head."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).vit.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cats are red and dogs are green; one file is grey, and one is a JPEG of another size."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(8):
            pixels = rng.integers(0, 90, (9, 11, 3)).astype("uint8")
            pixels[..., number % 2] += 120
            path = folder / split / KINDS[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    Image.new("L", (5, 5), 90).save(folder / "test" / "cat" / "0.png")
    (folder / "test" / "dog" / "1.png").unlink()
    Image.new("RGB", (20, 30), (0, 200, 0)).save(folder / "test" / "dog" / "1.jpg")
    return folder


def task(**changes: Any) -> Task:
    usual: dict[str, Any] = {"name": "photos", "type": "image_classification", "dataset": "imagefolder"}
    usual |= {"columns": {"image": "image", "label": "label"}, "metrics": ["accuracy"], "lr": 1e-2}
    return Task(**(usual | {"validation_fraction": 0.25, "eval_batch_size": 3} | changes))


def test_a_folder_is_judged_as_the_models_own_processor_and_classes_do(photos: Path, vit: Path) -> None:
    mine = task(data_dir=str(photos))
    splits, processor = load_splits(mine), AutoImageProcessor.from_pretrained(vit)
    kind = TASK_TYPES["image_classification"](mine, processor, splits)
    assert kind.head() == {
        "num_labels": 2,
        "id2label": {0: "cat", 1: "dog"},
        "label2id": {"cat": 0, "dog": 1},
    }
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_pretrained(vit, **kind.head()).eval()
    outcomes = kind.outcomes(model, splits["test"])
    files = sorted((photos / "test" / "cat").iterdir()) + sorted((photos / "test" / "dog").iterdir())
    assert {base64.b64decode(row["image"]) for row in splits["test"]} == {file.read_bytes() for file in files}
    known = {file.read_bytes(): file for file in files}
    for row, outcome in zip(splits["test"], outcomes, strict=True):
        file = known[base64.b64decode(row["image"])]
        pixels = processor(Image.open(file).convert("RGB"), return_tensors="pt")
        log_p = model(**pixels).logits[0].log_softmax(-1)
        assert outcome["reference"] == KINDS.index(file.parent.name)
        assert outcome["prediction"] == int(log_p.argmax())
        assert outcome["nll"] == pytest.approx(-log_p[outcome["reference"]].item(), rel=1e-5)


def test_a_table_with_images_in_it_holds_the_same(photos: Path, tmp_path: Path) -> None:
    """Parquet, as the Hub keeps images: their bytes in the table, classes by number."""
    folder = load_splits(task(data_dir=str(photos)))
    read = datasets.load_dataset("imagefolder", data_dir=str(photos))
    for split, data in read.items():
        data.rename_columns({"image": "img", "label": "fine"}).to_parquet(tmp_path / f"{split}.parquet")
    files = {"train": "train.parquet", "test": "test.parquet"}
    columns = {"image": "img", "label": "fine"}
    table = load_splits(task(dataset="parquet", data_dir=str(tmp_path), data_files=files, columns=columns))
    assert fingerprint(table) == fingerprint(folder)  # wherever the files lie
    kind = TASK_TYPES["image_classification"](task(), None, table)
    assert kind.labels == list(KINDS)


def test_a_run_learns_and_its_merged_model_is_transformers_own(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    words = f"+variant=lora rank=2 lr=5e-2 task=image_classification task.data_dir={photos} model={vit}"
    more = "task.validation_fraction=0.25 batch_size=6 steps=12 dropbp=0.2 tracking=none threads=1"
    done = run(*words.split(), *more.split(), at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/result.json"))
    record = read_json(folder / "result.json")
    assert record["metrics"]["test"]["accuracy"] >= 0.8 > record["zero_shot"]["test"]["accuracy"]
    assert record["parameters"]["in_full"]
    merged = merge(folder, tmp_path / "merged")
    assert merged.difference < 1e-5
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == {0: "cat", 1: "dog"}
    AutoImageProcessor.from_pretrained(tmp_path / "merged")


def test_the_activations_of_a_model_are_counted_whose_embeddings_give_a_grid_too() -> None:
    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2]}
    model = SwinForImageClassification(SwinConfig(**sizes, window_size=4)).requires_grad_(False)
    pixels, labels = torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)
    assert not saved_bytes(model, lambda: model(pixels, labels=labels).loss)
    with embedded_inputs_learn(model):
        assert saved_bytes(model, lambda: model(pixels, labels=labels).loss)
