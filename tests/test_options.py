"""Multiple choice with options per example: the formats of published sets, and likelihoods one by one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.pocket import HUB
from lora_zoo.tasks.data import load_splits
from lora_zoo.tasks.labels import Classes

ROOT = Path(__file__).parents[1]
CHOICES = {"text": ["a rock", "a cat", "a cloud"], "label": ["A", "B", "C"]}
SETS: dict[str, tuple[dict[str, list[Any]], str, list[str], list[int]]] = {
    "piqa": (
        {"goal": ["open it", "close it"], "sol1": ["a", "b"], "sol2": ["c", "d"], "label": [0, 1]},
        "Goal: open it\nSolution:", ["a", "c"], [0, 1],
    ),
    "social_iqa": (
        {"context": ["he ran.", "x"], "question": ["why?", "x"], "answerA": ["a", "a"], "answerB": ["b", "b"]}
        | {"answerC": ["c", "c"], "label": ["1", "3"]},
        "he ran. why?", ["a", "b", "c"], [0, 2],
    ),
    "hellaswag": (
        {"ctx": ["he ran", "x"], "endings": [["home", "in", "off", "up"]] * 2, "label": ["3", "0"]},
        "he ran", ["home", "in", "off", "up"], [3, 0],
    ),
    "winogrande": (
        {"sentence": ["_ ran", "x"], "option1": ["Ann", "a"], "option2": ["Bob", "b"], "answer": ["2", "1"]},
        "_ ran\nWho or what fills the blank:", ["Ann", "Bob"], [1, 0],
    ),
    "arc_easy": (
        {"question": ["what lives?", "x"], "choices": [CHOICES, CHOICES | {"label": ["1", "2", "3"]}]}
        | {"answerKey": ["B", "1"]},
        "Question: what lives?\nAnswer:", CHOICES["text"], [1, 0],
    ),
    "openbookqa": (
        {"question_stem": ["what lives", "x"], "choices": [CHOICES] * 2, "answerKey": ["B", "C"]},
        "what lives", CHOICES["text"], [1, 2],
    ),
}  # fmt: skip
"""Task -> two rows as published; of the first its prompt and options; of both the right option's number."""


def splits_of(folder: Path, name: str, rows: dict[str, list[Any]], **changes: Any) -> tuple[Task, Any]:
    for split in ("train", "validation", "test"):
        Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    known = yaml.safe_load((ROOT / "conf" / "task" / f"{name}.yaml").read_text())
    files = {split: f"{split}.parquet" for split in ("train", "validation", "test")}
    own = {"dataset": "parquet", "config_name": None, "splits": {}, "data_dir": str(folder), "lr": 1e-3}
    task = Task(**(known | own | {"data_files": files} | changes))
    return task, load_splits(task)


@pytest.mark.parametrize("name", SETS)
def test_published_sets_are_read(tmp_path: Path, name: str) -> None:
    rows, prompt, options, labels = SETS[name]
    task, splits = splits_of(tmp_path, name, rows)
    kind = TASK_TYPES["options"](task, PreTrainedTokenizerFast.from_pretrained(HUB), splits)
    assert kind.asks(task, splits["train"][0]) == prompt
    assert json.loads(splits["train"][0]["options"]) == options
    assert kind.references(list(splits["test"])) == labels


def test_boolq_has_the_same_words_for_all(tmp_path: Path) -> None:
    rows = {"question": ["is it", "was it"], "passage": ["it is", "x"], "answer": [True, False]}
    task, splits = splits_of(tmp_path, "boolq", rows)
    classes, kind = Classes(task, splits), TASK_TYPES[task.type]
    assert [classes.id(answer) for answer in splits["test"]["label"]] == [1, 0]
    assert kind.asks(task, splits["test"][0]) == "it is\nQuestion: is it? Answer:"


def test_a_decoder_chooses_the_likeliest_option(tmp_path: Path) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(HUB), PreTrainedTokenizerFast.from_pretrained(HUB)
    texts = [["red", "the old dog", "7 ; 8"], ["a", "the"]]
    rows = {"prompt": ["a dog is", "who saw"], "options": texts, "label": ["the old dog", "A"]}
    task, splits = splits_of(tmp_path, "options", rows, eval_batch_size=2, max_length=40)
    kind = TASK_TYPES["options"](task, tokenizer, splits)
    outcomes = kind.outcomes(model.eval(), splits["test"])
    for row, own, outcome in zip(splits["test"], texts, outcomes, strict=True):
        scores = []
        for text in own:
            prompt = tokenizer(row["prompt"])["input_ids"]
            tail = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
            log_p = model(torch.tensor([prompt + tail])).logits[0].log_softmax(-1)
            scores.append(sum(log_p[len(prompt) - 1 + i, t] for i, t in enumerate(tail)))
        found = torch.stack(scores)
        assert outcome["prediction"] == int(found.argmax())
        assert outcome["nll"] == pytest.approx(
            -found.log_softmax(0)[outcome["reference"]].item(), rel=1e-4, abs=1e-6
        )
        assert outcome["score"] == float(outcome["prediction"] == outcome["reference"])
    assert [outcome["reference"] for outcome in outcomes] == [1, 0]
    encoded = kind.encode(splits["train"][0])
    learned = [label for label in encoded["labels"] if label != -100]
    assert learned == tokenizer(" the old dog", add_special_tokens=False)["input_ids"]


def test_an_option_of_which_the_tokenizer_leaves_nothing_is_refused(tmp_path: Path) -> None:
    """Its likelihood would be 1, whatever the model; as the right one, it would make the loss NaN."""
    knows_one = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0}, [])), pad_token="a")
    task, splits = splits_of(tmp_path, "options", {"prompt": ["a"], "options": [["a", "☃"]], "label": [0]})
    kind = TASK_TYPES["options"](task, knows_one, splits)
    with pytest.raises(ValueError, match="to the tokenizer the option '☃' of example 0 is empty; give"):
        kind.encode(splits["train"][0])


REFUSED: dict[str, tuple[dict[str, list[Any]], str]] = {
    "column": (
        {"prompt": ["a"], "choices": [["b", "c"]], "label": [0]},
        "unknown column 'options'.*names them",
    ),
    "label": (
        {"prompt": ["a"], "options": [["b", "c"]], "label": ["E"]},
        "example 0: unknown label 'E'. Cho",
    ),
    "number": ({"prompt": ["a"] * 2, "options": [["b", "c"]] * 2, "label": [2, 0]}, "unknown label '0'"),
    "one": ({"prompt": ["a"], "options": [["b"]], "label": [0]}, "it needs two or more, none of them empty"),
    "text": ({"prompt": ["a"], "options": ["b"], "label": [0]}, "its options are 'b', not a list of texts"),
    "hidden": ({"prompt": ["a"], "options": [["b", "c"]], "label": [""]}, "column label has empty values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gives_no_choice_is_said_in_one_line(tmp_path: Path, case: str) -> None:
    rows, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as caught:
        splits_of(tmp_path, "options", rows)
    assert "\n" not in str(caught.value)
