"""Plain language modelling: the stream of a text, its blocks, perplexity against transformers' loss."""

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lora_zoo import metrics
from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.models import from_scratch
from lora_zoo.tasks.data import load_splits

TEXT = "a cat sat here\n\n\nand a dog ran\n  \nover the hill\n" + "it went on\n" * 17


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "text.txt").write_text(TEXT)
    sizes: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "vocabulary": 280, "seed": 0}
    from_scratch.make(text=[folder / "text.txt"], out=folder / "base", **sizes)
    base = folder / "base"
    return LlamaForCausalLM.from_pretrained(base).eval(), PreTrainedTokenizerFast.from_pretrained(base)


def made(folder: Path, tokenizer: Any, **changes: Any) -> tuple[Any, dict[str, Any]]:
    (folder / "text.txt").write_text(TEXT)
    usual: dict[str, Any] = {"name": "lm", "type": "language_modelling", "dataset": "text", "lr": 1e-3}
    usual |= {"data_dir": str(folder), "data_files": {"train": "text.txt", "test": "text.txt"}}
    task = Task(**(usual | {"metrics": ["perplexity"], "max_length": 10, "eval_batch_size": 3} | changes))
    splits = load_splits(task)
    kind = TASK_TYPES["language_modelling"](task, tokenizer, splits)
    return kind, {name: kind.divided(name, data) for name, data in splits.items()}


def test_the_blocks_are_the_text_and_its_end_is_held_out(tmp_path: Path, llama: Any) -> None:
    tokenizer = llama[1]
    kind, splits = made(tmp_path, tokenizer, validation_fraction=0.25)
    whole = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    blocks = splits["test"]["input_ids"]
    assert list(chain.from_iterable(blocks)) == whole[: len(whole) // 10 * 10] and {
        len(block) for block in blocks
    } == {10}
    train, validation = (
        "".join(map(tokenizer.decode, splits[s]["input_ids"])) for s in ("train", "validation")
    )
    assert TEXT.startswith(train) and validation in "it went on\n" * 5 and len(validation) > 20
    assert kind.encode(splits["test"][0])["labels"] == blocks[0]


def test_documents_end_where_a_text_goes_on(tmp_path: Path, llama: Any) -> None:
    rows = [{"body": "a cat"}, {"body": ""}, {"body": "a dog\n"}, {"body": "ran"}]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, rows)))
    files = dict.fromkeys(("train", "validation"), "a.json")
    changes: dict[str, Any] = {"dataset": "json", "data_files": files, "columns": {"text": "body"}}
    kind, splits = made(tmp_path, llama[1], **changes, max_length=200)
    assert llama[1].decode(splits["train"]["input_ids"][0]) == "a cat</s>a dog\nran</s>"
    assert kind.asks(kind.task, splits["train"][0]) == kind.asks(kind.task, splits["validation"][0])


def test_perplexity_is_that_of_transformers_loss(tmp_path: Path, llama: Any) -> None:
    model, tokenizer = llama
    kind, splits = made(tmp_path, tokenizer)
    outcomes = kind.outcomes(model, splits["test"])
    losses = []
    for outcome, block in zip(outcomes, splits["test"]["input_ids"], strict=True):
        ids = torch.tensor([block])
        losses.append(model(ids, labels=ids).loss.item())
        assert outcome["prediction"] == pytest.approx(losses[-1], rel=1e-5) == -outcome["score"]
        assert outcome["reference"] == outcome["tokens"] == 9
    nll, tokens = ([outcome[key] for outcome in outcomes] for key in ("nll", "tokens"))
    found = metrics.load("perplexity").compute(predictions=nll, references=tokens)["perplexity"]
    assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert metrics.load("perplexity").compute(predictions=[math.log(8), 0.0], references=[1, 2]) == {
        "perplexity": pytest.approx(2.0)
    }


def test_what_has_no_text_is_said(tmp_path: Path, llama: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown column 'txet'. Did you mean 'text'"):
        made(tmp_path, llama[1], columns={"text": "txet"})
    (tmp_path / "a.txt").write_text("a\n")
    kind, _ = made(tmp_path, llama[1])
    with pytest.raises(ValueError, match="test: a text of 1 tokens predicts nothing"):
        kind.divided("test", {"text": ["\n"]})
