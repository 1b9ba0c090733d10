"""What strangers write into an adapter's folder is one line, in bounded time, and changes no model."""

import contextlib
import copy
import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lora_zoo import inject
from lora_zoo.core.expressions import matches
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.targets import matching
from lora_zoo.models.base import base_of
from tests.results.test_strangers import JUNK, paths

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.experts.3.down_proj", "a" * 60)
ORDINARY = (
    *("q_proj", r".*\.(q|v)_proj", r"(?:\w+\.)*q_proj", r"^(?!.*experts).*proj$", r"(layers\.\d+\.?)+"),
    *(
        r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
        r"model\.layers\.(?:0|11)\..*",
        r"(?i:MODEL)\..*",
    ),
    *(r"[\w.]+", r"(a{1,30}){1,2}", r"a|b|model\b.*", r"(?i:MODEL)\..*", r".*?\.[^.]*\.(\d+)\..*"),
)
CATASTROPHIC = (
    *(r"(a|a|b?)+$x", r"(.*)*\1y", r"((a+)+)+[^a]x", r"(a?){60}a{60}b", r"(((a{1000}){1000}){1000})b"),
    *(r"^(([a-z])+.)+[A-Z]([a-z])+$x", r"(x+x+)+y" * 3, r"(a|aa)+\1+$b"),
)


@pytest.mark.parametrize("expression", ORDINARY)
def test_an_ordinary_expression_means_what_it_means_to_re(expression: str) -> None:
    for name in NAMES:
        assert matches(expression, name) == bool(re.fullmatch(expression, name))
        assert matches(expression, name, whole=False) == bool(re.match(expression, name))


@pytest.mark.parametrize("expression", CATASTROPHIC)
def test_every_expression_ends_in_time(expression: str) -> None:
    began = time.process_time()
    for name in ("a" * 60, "x" * 60):
        try:
            assert not matches(expression, name)
        except ValueError as refusal:
            assert "takes longer" in str(refusal) or "repeats too much" in str(refusal)
    assert time.process_time() - began < 10


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.v_proj = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)


def test_targets_of_a_user_are_bounded_as_well() -> None:
    from lora_zoo.injection.matrices import find_matrices

    net = torch.nn.ModuleDict({"a" * 60: torch.nn.Linear(3, 3)})
    with pytest.raises(ValueError, match="repeats too much"):
        matching(find_matrices(net), r"(((a{1000}){1000}){1000})b")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(inject(Small(), "lora", target_modules=["q_proj"], rank=2), tmp_path / "adapter")


LIES: dict[str, Any] = {
    "a list": lambda d: [],
    "a number": lambda d: 3,
    "nothing": lambda d: {},
    **{
        f"no {key}": lambda d, key=key: {k: v for k, v in d.items() if k != key}
        for key in ("format", "variant")
    },
    **{
        f"no {key}": lambda d, key=key: {k: v for k, v in d.items() if k != key}
        for key in ("hyperparameters", "target_modules", "in_full", "seed")
    },
    "hyperparameters as a list": lambda d: d | {"hyperparameters": [1]},
    "matrices as a map": lambda d: d | {"target_modules": {"q_proj": 1}},
    "matrices as numbers": lambda d: d | {"target_modules": [1]},
    "patterns as a list": lambda d: d | {"patterns": [1]},
    "patterns of patterns": lambda d: d | {"patterns": {"rank": [3]}},
    "a seed as a text": lambda d: d | {"seed": "x"},
    "a great rank": lambda d: d | {"hyperparameters": d["hyperparameters"] | {"rank": 10**12}},
    "a rank as a list": lambda d: d | {"hyperparameters": d["hyperparameters"] | {"rank": [2]}},
    "a name as a list": lambda d: d | {"name": ["x"]},
    "a name that leads away": lambda d: d | {"name": "../x"},
    "a file as a text": lambda d: d | {"variant": "mine", "variant_file": "x"},
    "a file without its hash": lambda d: d | {"variant": "mine", "variant_file": {"path": "x"}},
    "notes as a list": lambda d: d | {"about": [1]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_lies_is_one_line_and_the_model_is_as_it_was(lie: str, adapter: Path) -> None:
    path, net = adapter / "adapter.json", Small()
    path.write_text(json.dumps(LIES[lie](json.loads(path.read_text()))))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError) as refusal:
        load_adapter(net, adapter)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 700
    assert net.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in net.parameters())


NO_JSON = {
    "cut": "{",
    "very deep": "[" * 10**5,
    "deep": '{"format": ' + "[" * 500 + "]" * 500 + "}",
    "no text": "\udc80",
}


@pytest.mark.parametrize("content", NO_JSON)
def test_a_description_that_is_no_json_is_one_line(content: str, adapter: Path) -> None:
    (adapter / "adapter.json").write_bytes(NO_JSON[content].encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as refusal:
        load_adapter(Small(), adapter)
    assert "\n" not in str(refusal.value)


HEADS = (
    {"num_labels": 10**12},
    {"num_labels": "3"},
    {"num_labels": True},
    {"num_labels": -1},
    {"id2label": [1]},
    {"id2label": {str(i): "x" for i in range(100_001)}},
    {"label2id": {"a": [1]}},
    {"problem_type": 3},
)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: str(head)[:30])
def test_a_head_is_of_a_size_that_heads_have(head: dict[str, Any], adapter: Path) -> None:
    path = adapter / "adapter.json"
    about = {"model": {"path": "x"}, "auto_class": "AutoModelForSequenceClassification", "head": head}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"about": about}))
    with pytest.raises(ValueError, match="head"):
        base_of(adapter)


def peft(folder: Path, **said: Any) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | said
    (folder / "adapter_config.json").write_text(json.dumps(config))
    state = {"lora_A.weight": torch.ones(2, 6), "lora_B.weight": torch.ones(5, 2)}
    save_file(
        {f"base_model.model.q_proj.{k}": v for k, v in state.items()}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.mark.parametrize(
    "said",
    [
        {"target_modules": r"(((q{1000}){1000}){1000})b"},
        {"rank_pattern": {r"(((q{1000}){1000}){1000})b": 2}},
        {"layers_to_transform": [0], "layers_pattern": {"a": 1}},
        {"target_modules": [["q_proj"]]},
        {"r": 10**12},
        {"layers_to_transform": {"a": 1}},
    ],
    ids=lambda said: str(said)[:40],
)
def test_pefts_configuration_is_bounded(said: dict[str, Any], tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(ValueError) as refusal:
        load_adapter(Small(), peft(tmp_path / "p", **said))
    assert time.process_time() - began < 10 and "\n" not in str(refusal.value)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter.json").unlink()
    os.mkfifo(adapter / "adapter.json")
    with pytest.raises((ValueError, OSError)):
        load_adapter(Small(), adapter)


def test_quantised_layers_are_refused_for_what_they_are() -> None:
    """A parameter of a class of torchao's, and a model that a quantiser of transformers' has made."""
    net = Small()
    codes = type("Int8Tensor", (torch.nn.Parameter,), {"__module__": "torchao.dtypes"})
    net.q_proj.weight = codes(net.q_proj.weight.data)
    with pytest.raises(ValueError, match=r"quantised \(q_proj.weight is a Int8Tensor of torchao\)"):
        inject(net, "lora", target_modules=["v_proj"])
    net, scheme = Small(), type("Scheme", (), {"quant_method": "bitsandbytes"})
    net.hf_quantizer = type("Quantizer", (), {"quantization_config": scheme})  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=r"quantised \(bitsandbytes\) in a way that no layer type here reads"
    ):
        inject(net, "lora", target_modules=["q"])


def altered(path: Path, draw: random.Random) -> None:
    """Put something strange at a place of a JSON file, drawn at random."""
    held = whole = json.loads(path.read_text())
    *way, last = draw.choice(list(paths(whole)))
    for key in way:
        held = held[key]
    held[last] = draw.choice(JUNK)
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_stands_at_any_place_it_is_read_or_refused(seed: int, adapter: Path, tmp_path: Path) -> None:
    """A property: of places and values drawn from a seed, none raises anything but ValueError."""
    said = {"rank_pattern": {"q_proj": 2}, "task_type": "SEQ_CLS", "base_model_name_or_path": "x"}
    theirs = peft(tmp_path / "p", exclude_modules=["v"], lora_dropout=0.0, **said)
    draw = random.Random(seed)
    for file in (adapter / "adapter.json", theirs / "adapter_config.json"):
        whole = file.read_text()
        for _ in range(30):
            altered(file, draw)
            for read in (lambda folder: load_adapter(Small(), folder), base_of):
                with contextlib.suppress(ValueError):
                    read(file.parent)
            file.write_text(whole)


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta", "nan"])
def test_a_tensor_of_no_plain_numbers_is_one_line(kind: str, tmp_path: Path) -> None:
    A = torch.ones(2, 8)
    made = {
        "sparse": A.to_sparse(),
        "quantised": torch.quantize_per_tensor(A, 0.1, 0, torch.qint8),
        "meta": A.to("meta"),
        "nan": A * float("nan"),
    }
    torch.save({"0.lora_A": made[kind], "0.lora_B": torch.ones(8, 2)}, tmp_path / "l.pt")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"is sparse, quantised or without numbers|holds NaN or inf"):
        load_adapter(model, tmp_path / "l.pt", alpha=2.0)
    assert type(model[0]) is torch.nn.Linear and model[0].weight.requires_grad
