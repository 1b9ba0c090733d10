"""Data in, outcomes out: splits, kinds and what they refuse."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.models import from_scratch
from lora_zoo.tasks import causal_lm
from lora_zoo.tasks.base import IGNORED
from lora_zoo.tasks.data import fingerprint, load_splits
from lora_zoo.tasks.labels import check_numbers
from lora_zoo.tasks.likelihood import summary

ROWS = [
    {"first": "a cat sits", "second": "a cat", "gold": "yes", "score": 1.5},
    {"first": "a dog runs", "second": "a cat", "gold": "no", "score": 4.0},
    {"first": 'he said "hi', "second": "hi", "gold": "yes", "score": 2.0},
    {"first": "a dog runs", "second": "a dog", "gold": "yes", "score": 5.0},
] * 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        with (tmp_path / f"{split}.tsv").open("w", newline="") as file:
            file.write("first\tsecond\tgold\tscore\r\n")
            for row in ROWS:
                file.write("\t".join(str(v) for v in row.values()) + "\r\n")
        (tmp_path / f"{split}.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    return tmp_path


def task(folder: Path, **changes: Any) -> Task:
    usual = {
        "name": "mine",
        "type": "classification",
        "dataset": "csv",
        "data_dir": str(folder),
        "data_files": {"train": "train.tsv", "test": "test.tsv"},
        "options": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
        "columns": {"text": "first", "text_pair": "second", "label": "gold"},
        "metrics": ["accuracy"],
        "lr": 1e-3,
    }
    return Task(**(usual | changes))


def test_csv_and_json_hold_the_same_examples(folder: Path) -> None:
    from_csv = load_splits(task(folder))
    files = {"train": "train.json", "test": "test.json"}
    from_json = load_splits(task(folder, dataset="json", data_files=files, options={}))
    assert from_csv["test"].to_list() == from_json["test"].to_list()
    assert from_csv["test"][2]["text"] == 'he said "hi'  # a bare quote is a character like any other
    assert [row["item"] for row in from_csv["test"]] == list(range(20))


def test_a_validation_split_is_held_out_of_train(folder: Path) -> None:
    splits = load_splits(task(folder, validation_fraction=0.25))
    assert (len(splits["train"]), len(splits["validation"]), len(splits["test"])) == (15, 5, 20)
    assert fingerprint(splits) == fingerprint(load_splits(task(folder, validation_fraction=0.25)))


def test_sizes_limit_a_split(folder: Path) -> None:
    assert len(load_splits(task(folder, sizes={"test": 3}))["test"]) == 3


BAD_DATA = {
    "column": ({"columns": {"text": "frist", "label": "gold"}}, ["unknown column 'frist'", "'first'"]),
    "label": ({"labels": ["yes", "maybe"]}, ["unknown label 'no'", "yes, maybe"]),
    "train": ({"data_files": {"test": "test.tsv"}}, ["no train split"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named(case: str, folder: Path, bert: Any) -> None:
    changes, parts = BAD_DATA[case]
    with pytest.raises(ValueError, match=r"\w") as caught:
        mine = task(folder, **changes)
        TASK_TYPES["classification"](mine, bert[1], load_splits(mine))
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_an_empty_split_and_an_empty_value_are_named(folder: Path) -> None:
    (folder / "test.tsv").write_text("first\tsecond\tgold\tscore\n")
    with pytest.raises(ValueError, match=r"task mine: .*no data"):
        load_splits(task(folder))
    (folder / "test.json").write_text('{"first": "x", "second": null, "gold": "yes"}')
    (folder / "train.json").write_text('{"first": "x", "second": "y", "gold": "yes"}\n' * 10)
    with pytest.raises(ValueError, match=r"task mine, test: column second has empty values.*example 0"):
        load_splits(
            task(folder, dataset="json", data_files={"train": "train.json", "test": "test.json"}, options={})
        )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    words = sorted(
        {w for row in ROWS for key in ("first", "second") for w in str(row[key]).replace('"', "").split()}
    )
    vocabulary = tmp_path_factory.mktemp("bert") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, '"']))
    tokenizer = BertTokenizerFast(vocab_file=str(vocabulary))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return config, tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "text.txt").write_text(
        "\n".join(f"{row['first']} {row['second']} yes no maybe" for row in ROWS)
    )
    from_scratch.make(
        text=[folder / "text.txt"], out=folder / "base", hidden=16, layers=1, heads=2, vocabulary=300, seed=0
    )
    model = LlamaForCausalLM.from_pretrained(folder / "base").eval()
    return model, PreTrainedTokenizerFast.from_pretrained(folder / "base")


def test_classification_answers_each_example_as_the_model_does_alone(folder: Path, bert: Any) -> None:
    mine = task(folder, eval_batch_size=3)
    splits = load_splits(mine)
    config, tokenizer = bert
    kind = TASK_TYPES["classification"](mine, tokenizer, splits)
    assert kind.head()["id2label"] == {0: "no", 1: "yes"}
    config.update(kind.head())
    model = BertForSequenceClassification(config).eval()
    outcomes = kind.outcomes(model, splits["test"])
    for row, outcome in zip(splits["test"], outcomes, strict=True):
        alone = model(**tokenizer(row["text"], row["text_pair"], return_tensors="pt")).logits.argmax().item()
        assert (outcome["item"], outcome["prediction"]) == (row["item"], alone)
        assert outcome["reference"] == ["no", "yes"].index(row["label"])
        assert outcome["score"] == float(outcome["prediction"] == outcome["reference"])
        logits = model(**tokenizer(row["text"], row["text_pair"], return_tensors="pt")).logits[0]
        log_p = logits.softmax(0).log().tolist()
        assert (outcome["nll"], outcome["tokens"]) == (pytest.approx(-log_p[outcome["reference"]]), 1)


def test_regression_predicts_numbers(folder: Path, bert: Any) -> None:
    columns = {"text": "first", "label": "score"}
    mine = task(folder, type="regression", columns=columns, metrics=["pearson"])
    splits = load_splits(mine)
    kind = TASK_TYPES["regression"](mine, bert[1], splits)
    bert[0].update({"num_labels": 1, "problem_type": "regression"})
    outcomes = kind.outcomes(BertForSequenceClassification(bert[0]).eval(), splits["test"])
    assert [o["reference"] for o in outcomes] == [float(r["score"]) for r in ROWS]
    assert all(o["score"] == -((o["prediction"] - o["reference"]) ** 2) for o in outcomes)
    assert summary(outcomes) == {}, "the scale of a Gaussian is not given"


def test_a_decoder_chooses_the_likeliest_label_word(folder: Path, llama: Any) -> None:
    mine = task(
        folder, type="multiple_choice", columns={"prompt": "first", "label": "gold"}, eval_batch_size=3
    )
    splits = load_splits(mine)
    model, tokenizer = llama
    kind = TASK_TYPES["multiple_choice"](mine, tokenizer, splits)
    outcomes = kind.outcomes(model, splits["test"])
    for row, outcome in zip(splits["test"], outcomes, strict=True):
        likelihood = []
        for word in ("no", "yes"):
            prompt = tokenizer(row["prompt"])["input_ids"]
            tail = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            log_p = model(torch.tensor([prompt + tail])).logits[0].log_softmax(-1)
            likelihood.append(sum(log_p[len(prompt) - 1 + i, t].item() for i, t in enumerate(tail)))
        assert outcome["prediction"] == likelihood.index(max(likelihood))
        of_both = math.log(sum(map(math.exp, likelihood)))
        right = likelihood[("no", "yes").index(row["label"])]
        assert (outcome["nll"], outcome["tokens"]) == (pytest.approx(of_both - right, rel=1e-4), 1)


def generation(folder: Path, **changes: Any) -> Task:
    usual: dict[str, Any] = {"type": "causal_lm", "columns": {"prompt": "first", "target": "second"}}
    return task(
        folder, **(usual | {"max_new_tokens": 6, "eval_batch_size": 3, "metrics": ["exact_match"]} | changes)
    )


def test_the_loss_of_generation_is_on_the_target_alone(folder: Path, llama: Any) -> None:
    mine = generation(folder, template="{prompt} =>")
    kind = TASK_TYPES["causal_lm"](mine, llama[1], load_splits(mine))
    encoded = kind.encode({"prompt": "a dog runs", "target": "a cat"})
    counted = [
        i for i, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label != IGNORED
    ]
    assert llama[1].decode(counted) == " a cat</s>"
    assert llama[1].decode(encoded["input_ids"]) == "a dog runs => a cat</s>"
    assert counted[-1] == llama[1].eos_token_id


def test_a_batch_generates_what_each_prompt_generates_alone(folder: Path, llama: Any) -> None:
    model, tokenizer = llama
    mine = generation(folder)
    splits = load_splits(mine)
    outcomes = TASK_TYPES["causal_lm"](mine, tokenizer, splits).outcomes(model, splits["test"])
    for row, outcome in zip(list(splits["test"])[:4], outcomes, strict=False):
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)[0]
        text = tokenizer.decode(alone[ids.shape[1] :], skip_special_tokens=True)
        assert outcome["prediction"] == " ".join(text.split())


def test_examples_of_one_prompt_are_references_of_one_item(folder: Path, llama: Any) -> None:
    mine = generation(folder, group_references=True)
    splits = load_splits(mine)
    outcomes = TASK_TYPES["causal_lm"](mine, llama[1], splits).outcomes(llama[0], splits["test"])
    assert len(outcomes) == 3
    assert sorted(set(outcomes[1]["reference"])) == ["a cat", "a dog"]
    apart = TASK_TYPES["causal_lm"](generation(folder), llama[1], splits).outcomes(llama[0], splits["test"])
    found = [one for row, one in zip(splits["test"], apart, strict=True) if row["prompt"] == "a dog runs"]
    for key in ("nll", "tokens"):
        each = [one[key] for one in found]
        assert outcomes[1][key] == pytest.approx(sum(each) / 10) and len(each) == 10


@pytest.mark.parametrize("max_length", [256, 7])
def test_the_likelihood_of_a_target_is_that_of_its_tokens_alone(
    folder: Path, llama: Any, max_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand and by transformers' loss, without padding; in batches of any size; as in training."""
    model, tokenizer = llama
    mine = generation(folder, template="{prompt} =>", max_length=max_length)
    splits = load_splits(mine)
    kind = TASK_TYPES["causal_lm"](mine, tokenizer, splits)
    rows = kind.items(splits["test"])
    outcomes = kind.outcomes(model, splits["test"])
    assert len({outcome["tokens"] for outcome in outcomes}) > 1 or max_length == 7
    for row, outcome in zip(rows[:4], outcomes, strict=False):
        prompt = tokenizer(f"{row['prompt']} =>")["input_ids"]
        target = tokenizer(f" {row['target']}", add_special_tokens=False)["input_ids"]
        target = [*target, tokenizer.eos_token_id]
        if max_length == 7:
            inputs, cut = kind.fitted(row)
            target = [label for label in inputs["labels"] if label != IGNORED]
            prompt = inputs["input_ids"][: -len(target)]
            assert cut
        ids = torch.tensor([prompt + target])
        log_p = model(ids).logits[0].log_softmax(-1)
        by_hand = -sum(log_p[len(prompt) - 1 + i, t].item() for i, t in enumerate(target))
        labels = torch.tensor([[IGNORED] * len(prompt) + target])
        by_loss = model(ids, labels=labels).loss.item() * len(target)
        assert outcome["tokens"] == len(target)
        assert outcome["nll"] == pytest.approx(by_hand, rel=1e-5) == pytest.approx(by_loss, rel=1e-5)
    told = summary(outcomes)
    loss = model(**kind.collate(kind.encoded(splits["test"]))).loss.item()
    assert told["nats_per_token"] == pytest.approx(loss, rel=1e-5)
    assert told["bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert told["nll"] * 20 == pytest.approx(loss * told["tokens"], rel=1e-5) and told["items"] == 20
    kind.has_likelihood = False
    without = [{k: v for k, v in one.items() if k not in ("nll", "tokens")} for one in outcomes]
    assert kind.outcomes(model, splits["test"]) == without
    monkeypatch.setattr(causal_lm, "LOGITS", 1)  # one by one
    alone = kind.likelihoods(model, rows)
    assert [one["nll"] for one in alone] == pytest.approx([one["nll"] for one in outcomes], rel=1e-6)


def test_a_reference_without_a_likelihood_is_refused(
    folder: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = llama
    mine = generation(folder)
    kind = TASK_TYPES["causal_lm"](mine, tokenizer, load_splits(mine))
    rows = [{"prompt": "a dog runs", "target": "a cat", "item": 0}]
    for broken in (math.nan, -math.inf):
        logits = torch.zeros(1, 40, len(tokenizer))
        logits[..., tokenizer.eos_token_id] = broken
        monkeypatch.setattr(
            kind, "_forced", lambda _, batch, z=logits: (z[:, : batch["labels"].shape[1]], batch["labels"])
        )
        with pytest.raises(ValueError, match="the likelihood NaN or 0; there is nothing to judge"):
            kind.likelihoods(model, rows)


def test_an_encoder_decoder_writes_targets(folder: Path, llama: Any) -> None:
    mine = generation(folder, type="seq2seq")
    splits = load_splits(mine)
    config = T5Config(
        vocab_size=len(llama[1]), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    kind = TASK_TYPES["seq2seq"](mine, llama[1], splits)
    encoded = kind.encode(splits["train"][0])
    assert encoded["labels"][-1] == llama[1].eos_token_id
    loss = model(**kind.collate(kind.encoded(splits["train"]))).loss
    assert loss.isfinite()
    outcomes = kind.outcomes(model, splits["test"])
    assert len(outcomes) == 20
    loss = model(**kind.collate(kind.encoded(splits["test"]))).loss
    assert summary(outcomes)["nats_per_token"] == pytest.approx(loss.item(), rel=1e-5)
    for row, outcome in zip(list(splits["test"])[:4], outcomes, strict=False):
        alone = kind.collate([kind.encode(row)])
        tokens = alone["labels"].numel()
        assert outcome["tokens"] == tokens
        assert outcome["nll"] == pytest.approx(model(**alone).loss.item() * tokens, rel=1e-5)


@pytest.mark.parametrize("label", ["x", None, "nan", float("inf")])
def test_labels_of_a_regression_are_finite_numbers(label: object) -> None:
    with pytest.raises(ValueError, match=r"train: the label .* of example 1 is no finite number"):
        check_numbers(Task(name="t"), {"train": {"label": ["0.5", label]}})
    check_numbers(Task(name="t"), {"train": {"label": ["0.5", 2]}})
