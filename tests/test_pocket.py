"""The embedded model and its tasks: what they promise to be."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_zoo.pocket import HELD_OUT, nli, sql
from lora_zoo.pocket import HUB as POCKET

TASKS = {"sql": sql.examples, "nli": nli.examples}
SPLITS = {"train": 2000, "validation": 600, "test": 600}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", [0, 7])
def test_no_prompt_is_in_two_splits_whatever_the_seeds(task: str, seed: int) -> None:
    train = {e["prompt"] for e in TASKS[task]("train", 2000, seed)}
    assert len(train) == 2000
    for split in ("validation", "test"):
        assert not train & {e["prompt"] for e in TASKS[task](split, 600, 1)}


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_the_same_in_another_process(task: str) -> None:
    code = (
        f"import json; from lora_zoo.pocket import {task}; print(json.dumps({task}.examples('test', 50, 3)))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == TASKS[task]("test", 50, 3)
    assert TASKS[task]("test", 50, 4) != TASKS[task]("test", 50, 3)


@pytest.mark.parametrize("task", TASKS)
def test_the_tokenizer_knows_every_word(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    for split, size in SPLITS.items():
        for example in TASKS[task](split, size, 0):
            ids = tokenizer(" ".join(example.values()))["input_ids"]
            assert tokenizer.unk_token_id not in ids, example
            assert len(ids) <= 128


def test_nli_is_balanced_and_sql_ends_as_it_should() -> None:
    labels = [e["label"] for e in nli.examples("test", 600, 0)]
    assert {labels.count(label) for label in nli.LABELS} == {200}
    assert all(e["target"].endswith(" ;") for e in sql.examples("test", 100, 0))


MAKE = Path(__file__).parents[1] / "experiments" / "pocket" / "make"


def test_the_scripts_make_the_held_out_text_and_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MAKE)
    genres, vocabulary = map(importlib.import_module, ("genres", "vocabulary"))
    assert genres.held_out(genres.WORDS) == HELD_OUT.read_text()
    shipped = AutoTokenizer.from_pretrained(POCKET)
    assert vocabulary.tokenizer().get_vocab() == shipped.get_vocab()


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="validation"):
        sql.examples("dev", 1, 0)


def test_the_model_is_small_tied_and_plain() -> None:
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype="float32")
    assert model.num_parameters() < 2_000_000
    assert model.lm_head.weight is model.model.embed_tokens.weight
    size = sum(path.stat().st_size for path in POCKET.iterdir())
    assert size < 8_000_000
    assert (POCKET / "README.md").is_file()
