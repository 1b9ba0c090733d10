"""Instruction data: three published formats, what of them the loss sees, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.models import from_scratch
from lora_zoo.tasks.cutting import IGNORED
from lora_zoo.tasks.data import load_splits

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}"
)
SHORTENED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last or loop.index0 % 2 == 0 else '…' }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Like templates of models that think: what is not the last answer is not written as it was."""
TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "one and one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and one"},
    {"role": "assistant", "content": "three, of course"},
]
WORDS = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": WORDS[m["role"]], "value": m["content"]} for m in TALK]
ALPACA = {"instruction": "add", "input": "one one", "output": "two"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "text.txt").write_text("\n".join(m["content"] for m in TALK) * 5)
    from_scratch.make(
        text=[folder / "text.txt"], out=folder / "base", hidden=16, layers=1, heads=2, vocabulary=300, seed=0
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model = LlamaForCausalLM.from_pretrained(folder / "base").eval()
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


def kind(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], **changes: Any) -> tuple[Any, Any]:
    """The task type, and its splits, of such rows in a JSON file."""
    (folder / "train.json").write_text("\n".join(map(json.dumps, rows * 4)))
    usual: dict[str, Any] = {"chat_template": CHATML, "max_new_tokens": 4, "validation_fraction": 0.5}
    usual |= {"data_files": {"train": "train.json", "test": "train.json"}, "data_dir": str(folder)}
    usual |= {"name": "talk", "type": "instructions", "dataset": "json", "metrics": ["rouge_l"], "lr": 1e-3}
    if "validation_fraction" not in changes:
        usual["data_files"]["validation"] = "train.json"
    task = Task(**(usual | changes))
    splits = load_splits(task)
    return TASK_TYPES["instructions"](task, tokenizer, splits), splits


def learned(kind: Any, splits: Any, number: int = 0) -> str:
    inputs = kind.encode(splits["train"][number])
    return kind.tokenizer.decode([label for label in inputs["labels"] if label != IGNORED])


def test_three_formats_hold_the_same_conversation(tmp_path: Path, llama: Any) -> None:
    tokenizer = llama[1]
    of_messages = kind(tmp_path, tokenizer, [{"messages": TALK}])[1]["train"].to_list()
    assert (
        json.loads(of_messages[0]["prompt"]) == TALK[:-1] and of_messages[0]["target"] == "three, of course"
    )
    assert kind(tmp_path, tokenizer, [{"conversations": SHAREGPT}])[1]["train"].to_list() == of_messages
    apart = {"system": "be short", "conversations": SHAREGPT[1:]}
    assert kind(tmp_path, tokenizer, [apart])[1]["train"].to_list() == of_messages
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in TALK]
    assert (
        kind(tmp_path, tokenizer, [{"talk": parts}], columns={"messages": "talk"})[1]["train"].to_list()
        == of_messages
    )
    for given, asked in (
        (ALPACA, "add\n\none one"),
        (ALPACA | {"input": ""}, "add"),
        (ALPACA | {"input": None}, "add"),
    ):
        row = kind(tmp_path, tokenizer, [given])[1]["train"][0]
        assert json.loads(row["prompt"]) == [{"role": "user", "content": asked}] and row["target"] == "two"
    no_input = {key: ALPACA[key] for key in ("instruction", "output")}
    assert json.loads(kind(tmp_path, tokenizer, [no_input])[1]["train"][0]["prompt"])[0]["content"] == "add"


def test_texts_of_a_table_are_what_the_file_says(tmp_path: Path, llama: Any) -> None:
    (tmp_path / "a.csv").write_text("instruction,input,output\n" + "copy,007,007\n" * 4)
    files = {"train": "a.csv", "validation": "a.csv"}
    row = kind(tmp_path, llama[1], [ALPACA], dataset="csv", data_files=files)[1]["train"][0]
    assert "007" in row["prompt"] and row["target"] == "007"


def test_the_loss_is_on_the_answers_that_transformers_marks(tmp_path: Path, llama: Any) -> None:
    tokenizer = llama[1]
    mine, splits = kind(tmp_path, tokenizer, [{"messages": TALK}])
    inputs = mine.encode(splits["train"][0])
    marked = tokenizer.apply_chat_template(
        TALK, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
    )
    whole = len(inputs["input_ids"])  # what follows the last answer's end is left out
    assert marked["input_ids"][:whole] == inputs["input_ids"] and set(marked["assistant_masks"][whole:]) == {
        0
    }
    assert [label != IGNORED for label in inputs["labels"]] == [
        m == 1 for m in marked["assistant_masks"][:whole]
    ]
    assert learned(mine, splits) == "two<|im_end|>three, of course<|im_end|>"
    assert mine.end == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_spaces_and_ends_are_those_of_the_template(tmp_path: Path, llama: Any) -> None:
    """One without marks or a prompt of its own, which writes a space before an answer and one after it."""
    mine, splits = kind(tmp_path, llama[1], [{"messages": TALK}], chat_template=LLAMA2)
    assert learned(mine, splits) == " two </s> three, of course </s>"
    assert mine.fitted_input(splits["test"][0]).inputs["input_ids"][-1:] != [llama[1].eos_token_id]


def test_what_is_judged_is_what_was_trained(tmp_path: Path, llama: Any) -> None:
    model, tokenizer = llama
    mine, splits = kind(tmp_path, tokenizer, [{"messages": TALK}, ALPACA | {"messages": TALK[1:3]}])
    outcomes = mine.outcomes(model, splits["test"])
    assert [o["reference"] for o in outcomes[:2]] == ["three, of course", "two"]
    prompt = mine.fitted_input(splits["test"][0]).inputs["input_ids"]
    whole = mine.encode(splits["test"][0])
    assert whole["input_ids"][: len(prompt)] == prompt
    loss = model(**mine.collate([whole])).loss.item()
    assert outcomes[0]["nll"] == pytest.approx(loss * outcomes[0]["tokens"], rel=1e-5)
    ids = torch.tensor([prompt])
    alone = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, eos_token_id=mine.end[0]
    )[0, len(prompt) :]
    assert outcomes[0]["prediction"] == " ".join(tokenizer.decode(alone, skip_special_tokens=True).split())


@pytest.mark.parametrize("limit", [12, 30])
def test_a_long_conversation_loses_its_start_and_keeps_its_end(
    tmp_path: Path, llama: Any, limit: int
) -> None:
    mine, splits = kind(tmp_path, llama[1], [{"messages": TALK}], max_length=limit)
    whole = kind(tmp_path, llama[1], [{"messages": TALK}])[0].encode(splits["train"][0])
    inputs, cut = mine.fitted(splits["train"][0])
    assert cut and len(inputs["input_ids"]) == limit == len(inputs["labels"])
    assert inputs["labels"][-1] == mine.end[0]
    if limit == 30:
        assert inputs["labels"] == whole["labels"][-30:] and inputs["input_ids"] == whole["input_ids"][-30:]
    judged = mine.fitted_input(splits["train"][0])
    assert judged.cut and len(judged.inputs["input_ids"]) == limit


REFUSED: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "columns": ([{"text": "a"}], {}, "type=instructions reads a column messages, .*the data has text"),
    "name": ([ALPACA], {"columns": {"mesages": "output"}}, "unknown name in task.columns 'mesages'. Did you"),
    "column": ([ALPACA], {"columns": {"output": "outptu"}}, "unknown column 'outptu'. Did you mean 'output'"),
    "role": (
        [{"messages": [{"role": "asistant", "content": "a"}]}],
        {},
        "example 0: unknown role 'asistant'",
    ),
    "none": ([{"messages": TALK[:2]}], {}, "train: example 0: it holds no answer"),
    "alone": ([{"messages": TALK[2:3]}], {}, "example 0: it is an answer to nothing"),
    "empty": ([ALPACA | {"output": " "}], {}, "its answer, message 1, is empty"),
    "call": ([{"messages": [TALK[1], {"role": "assistant", "content": None}]}], {}, "holds None; it must be"),
    "end": ([ALPACA], {"chat_template": "{% for m in messages %}{{ m.content }}\n{% endfor %}"}, "eos_token"),
    "jinja": (
        [ALPACA],
        {"chat_template": "{{ nothing.at.all }}"},
        "cannot write a conversation of user, assis",
    ),
    "shortened": ([{"messages": TALK[1:]}], {"chat_template": SHORTENED}, "rewrites what was said before"),
    "template": ([ALPACA], {"template": "Q: {prompt}"}, "task.template has no effect on type=instructions"),
    "stop": ([ALPACA], {"stop": "."}, "task.stop has no effect on type=instructions"),
    "lacking": ([ALPACA], {"chat_template": None}, "tokenizer has no chat template; give a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_is_said_in_one_line(tmp_path: Path, llama: Any, case: str) -> None:
    rows, changes, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as caught:
        mine, splits = kind(tmp_path, llama[1], rows, **changes)
        mine.encode(splits["train"][0])
    assert "\n" not in str(caught.value)
