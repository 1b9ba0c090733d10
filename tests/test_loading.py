"""Options of loading: a head of another size than the checkpoint's, the device of the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lora_zoo.config.schema import Model
from lora_zoo.models.loading import Loaded, load_model
from lora_zoo.runs.identity import specify
from tests.recorded import settings


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BertForSequenceClassification]:
    """A model of three classes, and the folder that holds it."""
    folder = tmp_path_factory.mktemp("judge")
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=1, num_labels=3))
    model.save_pretrained(folder)
    return folder, model


def load(folder: Path, classes: int = 3, seed: int = 0, **more: Any) -> Loaded:
    about = Model(name="judge", path=str(folder), **more)
    return load_model(about, "AutoModelForSequenceClassification", {"num_labels": classes}, None, seed)


def test_a_head_of_another_size_is_drawn_by_the_seed_and_named_as_new(judge: Any) -> None:
    folder, model = judge
    with pytest.raises(ValueError, match=r"another size in its files; model\.ignore_mismatched_sizes=true"):
        load(folder, 2)
    first, again, other = (load(folder, 2, seed, ignore_mismatched_sizes=True) for seed in (0, 0, 1))
    assert first.new_modules == ["classifier"]
    weights = [loaded.model.get_parameter("classifier.weight") for loaded in (first, again, other)]
    assert weights[0].shape == (2, 16) and torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    dense = "bert.pooler.dense.weight"
    assert torch.equal(first.model.get_parameter(dense), model.get_parameter(dense))
    fits = load(folder, ignore_mismatched_sizes=True)
    assert fits.new_modules == []
    assert torch.equal(fits.model.get_parameter("classifier.weight"), model.classifier.weight)


def test_only_a_head_may_have_another_size(judge: Any, tmp_path: Path) -> None:
    _, model = judge
    model.save_pretrained(tmp_path)
    BertConfig(**{**model.config.to_dict(), "vocab_size": 50}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"word_embeddings\.weight has another size .* only a head"):
        load(tmp_path, ignore_mismatched_sizes=True)


def test_weights_are_loaded_on_one_device(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = judge
    there = load(folder, device_map="cpu").model
    assert {str(p.device) for p in there.parameters()} == {"cpu"}
    assert all(torch.equal(p, q) for p, q in zip(there.parameters(), model.parameters(), strict=True))
    spread = {"bert": 0, "classifier": "cpu"}
    monkeypatch.setattr(BertForSequenceClassification, "hf_device_map", spread, raising=False)
    with pytest.raises(ValueError, match=r"spreads the model over 0, cpu, and a run uses one device"):
        load(folder)
    monkeypatch.setattr(BertForSequenceClassification, "hf_device_map", {"": "disk"})
    with pytest.raises(ValueError, match="over disk"):
        load(folder)


def test_where_weights_are_loaded_is_a_part_of_a_run() -> None:
    """A new head is drawn there, and codes are made there."""
    plain = specify(settings())
    for asked in ("model.device_map=cpu", "model.ignore_mismatched_sizes=true"):
        assert specify(settings(asked)).identity != plain.identity
