"""How data are read: labels, texts, cutting, ends, splits; and what is refused or told before training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from lora_zoo import metrics
from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.pocket import HUB
from lora_zoo.tasks.cutting import IGNORED, continued, fitted, least
from lora_zoo.tasks.data import load_splits
from lora_zoo.tasks.generating import before_end
from lora_zoo.tasks.reading import Reading, findings, read_judged, read_train
from lora_zoo.training.evaluation import check_inputs, check_references, positions_of

POCKET = AutoTokenizer.from_pretrained(HUB)
USUAL = {"name": "mine", "dataset": "csv", "metrics": ["accuracy"], "lr": 1e-3, "max_length": 24}
LINES = [f"the movie number {n} was good; very ; good" for n in range(40)]


def task(type_: str, **changes: Any) -> Task:
    return Task(**(USUAL | {"type": type_} | changes))


def kind(mine: Task, splits: Any, tokenizer: Any = POCKET) -> Any:
    return TASK_TYPES[mine.type](mine, tokenizer, splits)


@pytest.fixture(scope="module")
def bpe() -> Any:
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(LINES * 3, vocab_size=330, special_tokens=["<pad>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, pad_token="<pad>", eos_token="</s>")


CELLS = [
    [1, 2, 3, 4, 5],
    [-1, 1],
    [False, True],
    ["0", "1"],
    ["007", "7"],
    ["NA", "null", "None"],
    list(range(11)),
    ["no", "maybe", "yes"],
]
SAID = [f"{n} is it" for n in range(24)]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(CELLS), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_a_label_is_one_thing(cells: list[Any], random: Any, declared: bool, as_class: bool) -> None:
    """Names, ids, references and the model's id2label agree, whatever the cells and the declared order."""
    names = [str(cell) for cell in cells]
    own, order = random.sample(names, len(names)), random.sample(names, len(names))
    rows = [cells[n % len(cells)] for n in range(24)]
    features = None
    if as_class:
        rows = [own.index(str(cell)) for cell in rows]
        features = Features({"text": Value("string"), "label": ClassLabel(names=own)})
    data = Dataset.from_dict({"text": SAID, "label": rows}, features=features)
    mine = task("classification", labels=order if declared else None)
    made = kind(mine, {"train": data})
    truth = [names[n % len(names)] for n in range(24)]
    head = made.head()
    assert [head["id2label"][made.encode(row)["labels"]] for row in data] == truth
    assert [head["id2label"][one] for one in made.references(list(data))] == truth
    assert head["label2id"] == {name: number for number, name in head["id2label"].items()}
    assert made.described(list(data))["classes"] == {name: truth.count(name) for name in made.labels}
    if declared:
        assert made.labels == order
    elif as_class:
        assert made.labels == own
    else:
        assert made.labels == (sorted(names, key=float) if names[0].lstrip("-").isdigit() else sorted(names))


def test_a_choice_is_made_of_the_names_of_a_class_label() -> None:
    features = Features({"prompt": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    data = Dataset.from_dict({"prompt": ["a cat", "a dog"], "label": [0, 1]}, features=features)
    made = kind(task("multiple_choice", labels=["no", "yes"]), {"train": data})
    assert [made.references(list(data)), made.labels] == [[1, 0], ["no", "yes"]]
    assert POCKET.decode([t for t in made.encode(data[0])["labels"] if t != IGNORED]).strip() == "yes"


def test_f1_counts_the_second_label_or_the_one_that_is_named() -> None:
    data = Dataset.from_dict({"text": ["a"] * 4, "label": ["1", "0", "1", "1"]})
    for labels, given_, positive in (
        (["1", "0"], {}, "0"),
        (["0", "1"], {}, "1"),
        (["1", "0"], {"pos_label": 1}, "1"),
    ):
        made = kind(task("classification", labels=labels, metric_arguments={"f1": given_}), {"train": data})
        guesses = [made.classes.id_of(name) for name in ("1", "0", "0", "1")]
        value = metrics.load("f1").compute(
            predictions=guesses, references=made.references(list(data)), **made.metric_arguments("f1")
        )
        assert value["f1"] == pytest.approx({"0": 2 / 3, "1": 4 / 5}[positive])


WRITTEN = ["007", "NA", "null", "12", "1e5", "True", "None", "2020-01-01", "nan", " x "]
ALIKE = (["007", "12", "1e5"], ["True", "False"], ["2020-01-01", "2020-01-02"])


@pytest.mark.parametrize("written", [WRITTEN, *ALIKE], ids=lambda texts: texts[0])
@pytest.mark.parametrize("engine", ["c", "python"])
def test_a_text_column_is_what_the_file_says(engine: str, written: list[str], tmp_path: Path) -> None:
    lines = [f"{text},{text.strip()}" for text in written]
    (tmp_path / "train.csv").write_text("\n".join(["prompt,label", *lines]))
    mine = task(
        "multiple_choice",
        data_dir=str(tmp_path),
        data_files={"train": "train.csv"},
        options={"engine": engine},
    )
    splits = load_splits(mine)
    rows = [row for data in splits.values() for row in data]
    assert sorted(row["prompt"] for row in rows) == sorted(written)
    assert {row["label"] for row in rows} == {text.strip() for text in written}
    assert splits.cuts == {}
    few = load_splits(dataclasses.replace(mine, sizes={"train": 1}))
    assert few.cuts == ({"train": {"left_out": len(splits["train"]) - 1}} if len(splits["train"]) > 1 else {})


@settings(deadline=None, max_examples=40)
@example(asked=0, said=40, limit=10, type_="causal_lm")  # the target alone is cut
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(4, 30),
    st.sampled_from(["causal_lm", "multiple_choice"]),
)
def test_what_is_cut_is_the_prompts_start_and_the_end_stays(
    asked: int, said: int, limit: int, type_: str
) -> None:
    prompt, body = " ".join(["cat"] * asked + ["who"]), list(range(9, 9 + said))
    whole = POCKET(prompt)["input_ids"]
    made, cut = continued(POCKET, prompt, body, (2,), limit=limit)
    ids, target = made["input_ids"], [t for t in made["labels"] if t != IGNORED]
    assert len(ids) == len(made["labels"]) <= limit and target == [*body[: len(target) - 1], 2]
    assert ids[0] == whole[0] and ids[len(ids) - len(target) - 1] == whole[-1]  # <s> and the question stay
    assert cut == (len(whole) + said + 1 > limit)
    assert cut or ids == [*whole, *body, 2]
    judged, short = fitted(POCKET, prompt, room=limit)
    assert judged["input_ids"] == (whole if len(whole) <= limit else [whole[0], *whole[1 - limit :]])
    assert short == (len(whole) > limit) and POCKET.truncation_side == "right"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(4, 20))
def test_a_choice_is_made_after_the_prompt_of_training(asked: int, limit: int) -> None:
    data = Dataset.from_dict({"prompt": [" ".join(["cat"] * asked + ["who"])] * 2, "label": ["yes", "a cat"]})
    made = kind(task("multiple_choice", max_length=limit), {"train": data})
    prompts = {
        tuple(i for i, t in zip(e["input_ids"], e["labels"], strict=True) if t == IGNORED)
        for e in [made.encode(data[0]), *(made._continued(data[0], word).inputs for word in made.words)]
    }
    assert len(prompts) == 1


PAIRS = {"prompt": [f"the movie {n}" for n in range(12)], "target": [f"good {n % 3} was" for n in range(12)]}


@pytest.mark.parametrize("type_", ["causal_lm", "seq2seq"])
@pytest.mark.parametrize("stop", [None, ";", "END", "</s>", "number"])
@pytest.mark.parametrize("ended", [False, True])
def test_an_answer_stops_where_its_target_ends(type_: str, stop: str | None, ended: bool, bpe: Any) -> None:
    """The end is the tokens that targets end with: a model that says a target is stopped and read as it."""
    rows = PAIRS if not ended else PAIRS | {"target": [f"{t} {stop or ''}".strip() for t in PAIRS["target"]]}
    data = Dataset.from_dict(rows).add_column("item", list(range(12)))
    made = kind(task(type_, stop=stop, metrics=["exact_match"]), {"train": data}, bpe)
    read_train(made, list(data), [made.fitted(row) for row in data])
    for row, reference in zip(data, made.references(list(data)), strict=True):
        target = [t for t in made.encode(row)["labels"] if t != IGNORED]
        said = before_end([*target, 5, 6], made.end)
        assert [*said, *made.end] == target
        assert made._clean(bpe.decode(said)) == reference


class Says(LlamaForCausalLM):
    """A decoder that says one sequence of tokens, whatever it is asked."""

    said: list[int]
    start: int

    def forward(self, input_ids: Any = None, **given: Any) -> Any:
        out = super().forward(input_ids=input_ids, **given)
        mask = given["attention_mask"]
        step = mask.shape[1] - self.start
        out.logits = torch.full_like(out.logits, -1e4)
        out.logits[..., self.said[min(step, len(self.said) - 1)]] = 0.0
        return out


@pytest.mark.parametrize("stop", [None, ";", "END"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_waits_for_the_end_in_context(stop: str | None, beams: int, bpe: Any) -> None:
    data = Dataset.from_dict(PAIRS).add_column("item", list(range(12)))
    mine = task("causal_lm", stop=stop, max_new_tokens=20, num_beams=beams, metrics=["exact_match"])
    made = kind(mine, {"train": data}, bpe)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Says(LlamaConfig(vocab_size=len(bpe), **sizes)).eval()
    row = data[0]
    target = [t for t in made.encode(row)["labels"] if t != IGNORED]
    model.said, model.start = [*target, *bpe(" very")["input_ids"]], len(bpe(row["prompt"])["input_ids"])
    (outcome,) = made.outcomes(model, [row])
    assert (outcome["prediction"], outcome["score"]) == ("good 0 was", 1.0)


def test_a_target_without_its_end_and_an_end_without_a_token_are_refused(bpe: Any) -> None:
    data = Dataset.from_dict(PAIRS).add_column("item", list(range(12)))
    made = kind(task("causal_lm"), {"train": data}, bpe)
    rows = [made.fitted(row) for row in data]
    rows[3].inputs["labels"][-1] = 7
    with pytest.raises(ValueError, match="the target of example 3 lost its end"):
        read_train(made, list(data), rows)
    with pytest.raises(ValueError, match=r"has no token for task\.stop='qqq'"):
        kind(task("causal_lm", stop="qqq"), {"train": data})
    with pytest.raises(ValueError, match="validation: the target of example 1 is its end alone"):
        kind(task("causal_lm", stop=";"), {"train": data, "validation": {"target": ["x", " ; "]}}, bpe)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=40), st.sampled_from(["causal_lm", "classification"]))
def test_validation_asks_nothing_that_train_asks(asked: list[int], type_: str) -> None:
    if len(set(asked)) < 3:
        return
    from lora_zoo.tasks.data import _held_out

    needed = TASK_TYPES[type_].columns
    rows = {needed[0]: [f"ask {n}" for n in asked], needed[1]: ["x"] * len(asked)}
    parts = _held_out(task(type_, validation_fraction=0.3), Dataset.from_dict(rows))
    train, held = (parts[name][needed[0]] for name in ("train", "validation"))
    assert not set(train) & set(held) and sorted([*train, *held]) == sorted(rows[needed[0]])
    assert len(set(held)) == -(-3 * len(set(asked)) // 10)


def test_splits_that_are_not_judged_are_not_checked(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(
        "\n".join(json.dumps({"text": f"a {n}", "label": n % 2}) for n in range(20))
    )
    for test in ({"text": "a", "label": -1}, {"text": ""}):
        (tmp_path / "test.json").write_text(json.dumps(test))
        mine = task(
            "classification",
            dataset="json",
            data_dir=str(tmp_path),
            data_files={"train": "train.json", "test": "test.json"},
        )
        splits = load_splits(mine, ["validation"])
        kind(mine, {name: splits[name] for name in ("train", "validation")})
        assert list(splits) == ["train", "validation", "test"]
        with pytest.raises(ValueError, match=r"test: (all its labels are -1|column text has empty)"):
            kind(mine, load_splits(mine))


def test_optional_columns_may_be_empty(tmp_path: Path) -> None:
    rows = [{"instruction": f"do {n}", "input": None if n % 2 else "", "output": "so"} for n in range(9)]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, [*rows, rows[0] | {"input": "it"}])))
    mine = task(
        "causal_lm", dataset="json", data_dir=str(tmp_path), data_files={"train": "a.json"},
        columns={"prompt": "instruction", "input": "input", "target": "output"}, template="{prompt}|{input}",
    )  # fmt: skip
    texts = {mine.template.format(**row) for row in load_splits(mine)["train"]}
    assert "do 1|" in texts and not any("None" in text for text in texts)
    with pytest.raises(ValueError, match="column input has empty values, the first in example 0"):
        load_splits(
            dataclasses.replace(mine, columns={"prompt": "input", "target": "output"}, template="{prompt}")
        )


SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (
            lambda: RobertaModel(
                RobertaConfig(vocab_size=9, max_position_embeddings=66, pad_token_id=1, **SMALL)
            ),
            64,
        ),
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=32)),
            32,
        ),
        (lambda: LlamaForCausalLM(LlamaConfig(vocab_size=9, max_position_embeddings=40, **SMALL)), 40),
    ],
)
def test_positions_are_counted_as_the_model_counts_them(model: Any, positions: int) -> None:
    network = model().eval()
    assert positions_of(network) == positions
    network(input_ids=torch.full((1, positions), 3))
    if not isinstance(network, LlamaForCausalLM):  # whose positions have no table to run out of
        with pytest.raises((IndexError, RuntimeError)):
            network(input_ids=torch.full((1, positions + 1), 3))
    check_inputs(network, {"test": Reading({}, 8, positions - 5, 5, 0)})
    with pytest.raises(
        ValueError, match=f"test: an example of {positions - 5} tokens and task.max_new_tokens=6"
    ):
        check_inputs(network, {"test": Reading({}, 8, positions - 5, 6, 0)})
    with pytest.raises(ValueError, match="the tokenizer gives the token 9 and the model has 9"):
        check_inputs(network, {"test": Reading({}, 9, 1, 0, 0)})


def test_metrics_are_tried_on_every_split_that_is_judged() -> None:
    data = Dataset.from_dict({"text": ["a"] * 4, "label": [1.0, 2.0, 3.0, 2.0]})
    made = kind(task("regression"), {"train": data})
    about = type("Data", (), {"kind": made, "splits": {"validation": data, "test": data.select([0])}})
    found = {"pearson": metrics.load("pearson")}
    with pytest.raises(ValueError, match=r"test \(1 items\).*two items or more; got 1"):
        check_references(about, found)
    about.splits.pop("test")
    check_references(about, found)


class Broken(torch.nn.Module):
    config = type("Config", (), {"is_encoder_decoder": False})

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Any, **_: Any) -> Any:
        shape = (*input_ids.shape, len(POCKET))
        return type("Output", (), {"logits": torch.full(shape, torch.nan)})


@pytest.mark.parametrize("type_", ["multiple_choice", "classification", "regression"])
def test_answers_of_a_broken_model_are_no_answers(type_: str) -> None:
    labels = [1.0, 2.0] if type_ == "regression" else ["yes", "no"]
    data = Dataset.from_dict({"text": ["a", "b"], "prompt": ["a", "b"], "label": labels})
    made = kind(task(type_), {"train": data})
    with pytest.raises(ValueError, match="NaN or inf; there is nothing to judge"):
        made.outcomes(Broken(), data)


def test_generation_of_a_broken_model_is_no_answer(bpe: Any) -> None:
    data = Dataset.from_dict(PAIRS).add_column("item", list(range(12)))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(bpe), **SMALL)).eval()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="NaN; there is nothing to judge"):
        kind(task("causal_lm", max_new_tokens=2), {"train": data}, bpe).outcomes(model, data)


def test_what_a_reader_has_to_know_is_told() -> None:
    train = Dataset.from_dict({"text": ["a cat", "a dog", "a"], "label": ["yes", "no", "no"]})
    test = Dataset.from_dict({"text": ["a cat", "a bird who sits"], "label": ["no", "no"]}).add_column(
        "item", [0, 1]
    )
    made = kind(task("classification", max_length=4), {"train": train, "test": test})
    about = read_judged(made, test, {("a cat",)}).about
    assert about == {
        "tokens": {"least": 3, "median": 3.5, "most": 4}, "classes": {"no": 2, "yes": 0},
        "also_in_train": 1, "cut": 1,
    }  # fmt: skip
    assert findings("test", about, 2) == [
        "test holds one label alone, no: it tells no two models apart",
        "1 of 2 examples of test were cut to task.max_length",
    ]
    with pytest.raises(ValueError, match="its labels are all 3; there is nothing to tell apart"):
        kind(task("regression"), {"train": {"label": [3.0, 3.0]}})


def test_a_tokenizer_that_reads_all_inputs_alike_is_told_of() -> None:
    """So does that of another model, to which all words are unknown."""
    of = {"label": ["yes", "no"]}
    train = Dataset.from_dict({"text": ["a cat", "a dog"], **of})
    for text, told in (("同", ["同", "異"]), ("a", ["a", "b"])):
        test = Dataset.from_dict({"text": told, **of}).add_column("item", [0, 1])
        about = read_judged(kind(task("classification"), {"train": train, "test": test}), test, set()).about
        said = ["to the tokenizer all inputs of test are the same: it may not be this model's"]
        assert findings("test", about, 2) == (said if text == "同" else [])


def test_a_length_without_room_for_an_answer_is_refused() -> None:
    data = Dataset.from_dict(PAIRS)
    needed = least(POCKET) + 1
    kind(task("causal_lm", max_length=needed), {"train": data})
    with pytest.raises(ValueError, match=f"task.max_length={needed - 1} has no room.*give {needed} or more"):
        kind(task("causal_lm", max_length=needed - 1), {"train": data})
