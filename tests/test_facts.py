"""Facts learned by heart: the generator, bits by closed forms, and what it leaves of the checks on leaks."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from lora_zoo.config import command_line, compose
from lora_zoo.config.schema import Task, register
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.metrics import load, try_out
from lora_zoo.pocket import HUB, facts, grammar
from lora_zoo.runs.bits import learned
from lora_zoo.tasks.data import load_splits
from lora_zoo.tasks.reading import in_words, read_judged
from lora_zoo.training.evaluation import perfect

register()

BITS = math.log2(99)


def pairs_of(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    words = [row["prompt"].split() for row in rows]
    assert all(len(w) == 5 and w[4] == "age" for w in words)
    return [(" ".join(w[:2]), " ".join(w[2:4])) for w in words]


@pytest.mark.parametrize("structure", ["none", "shared", "additive"])
def test_facts_are_unique_seeded_and_in_the_vocabulary(structure: str) -> None:
    rows = facts.examples("train", 500, 0, structure=structure, people=40)
    pairs = pairs_of(rows)
    assert len(set(pairs)) == 500 and all(a != b for a, b in pairs)
    assert len({name for pair in pairs for name in pair}) == 40
    assert rows == facts.examples("train", 500, 0, structure=structure, people=40)
    assert rows != facts.examples("train", 500, 1, structure=structure, people=40)
    assert pairs == pairs_of(facts.examples("train", 500, 0, people=40))  # whatever the structure
    tokenizer = AutoTokenizer.from_pretrained(HUB)
    ids = [tokenizer(f"{row['prompt']} {row['target']}")["input_ids"] for row in rows]
    assert {len(each) for each in ids} == {7} and all(tokenizer.unk_token_id not in each for each in ids)


def test_all_pairs_of_few_people_can_be_facts_and_no_more() -> None:
    every = pairs_of(facts.examples("train", 6, 0, people=3))
    assert len(set(every)) == 6
    with pytest.raises(ValueError, match="of 3 people there are 6 pairs, and 7 facts"):
        facts.examples("train", 7, 0, people=3)
    with pytest.raises(ValueError, match="people must lie between 2 and"):
        facts.examples("train", 7, 0, people=len(grammar.people("train")) + 1)


def test_structured_facts_are_as_they_say() -> None:
    shared = facts.examples("train", 300, 0, structure="shared", people=30)
    of = {a: row["target"] for (a, _), row in zip(pairs_of(shared), shared, strict=True)}
    assert all(row["target"] == of[a] for (a, _), row in zip(pairs_of(shared), shared, strict=True))
    assert sum(row["information"] for row in shared) == pytest.approx(BITS * len(of))
    additive = facts.examples("train", 300, 0, structure="additive", people=30)
    at = {pair: int(row["target"]) for pair, row in zip(pairs_of(additive), additive, strict=True)}
    squares = [
        (at[a, c] - at[a, d] - at[b, c] + at[b, d]) % 99
        for a, b in itertools.combinations({a for a, _ in at}, 2)
        for c, d in itertools.combinations({b for _, b in at}, 2)
        if {(a, c), (a, d), (b, c), (b, d)} <= at.keys()
    ]
    assert len(squares) > 100 and not any(squares)  # u(a) + w(c) - u(a) - w(d) - u(b) - w(c) + u(b) + w(d)


@pytest.mark.parametrize("size", [5, 12, 30])
def test_additive_facts_hold_the_rank_of_their_pairs(size: int) -> None:
    """F + S - C is the rank of the matrix that takes what people hide to the facts, here by elimination."""
    rows = facts.examples("train", size, 3, structure="additive", people=8)
    pairs = pairs_of(rows)
    firsts, seconds = ({pair[side] for pair in pairs} for side in (0, 1))
    columns = [*(("first", a) for a in firsts), *(("second", b) for b in seconds)]
    basis: dict[int, set[int]] = {}
    for a, b in pairs:  # over GF(2), where the matrix of a graph of two sides has the same rank
        left = {columns.index(("first", a)), columns.index(("second", b))}
        while left and max(left) in basis:
            left ^= basis[max(left)]
        if left:
            basis[max(left)] = left
    assert sum(row["information"] for row in rows) == pytest.approx(BITS * len(basis))


def test_bits_of_a_uniform_and_of_a_perfect_model() -> None:
    bits, texts = load("bits"), ["7"] * 50
    uniform = bits.compute(predictions=[math.log(99)] * 50, references=texts, choices=99)
    assert uniform == pytest.approx({"bits": 0.0}, abs=1e-9)
    assert bits.compute(predictions=[0.0] * 50, references=texts, choices=99) == {"bits": 50 * BITS}
    worse = bits.compute(predictions=[2 * math.log(99)] * 50, references=texts, choices=99)
    assert worse["bits"] == pytest.approx(-50 * BITS)
    for wrong in (None, 1, 9.5, True):
        with pytest.raises(ValueError, match="bits: the number of choices must be an integer"):
            try_out("bits", bits, [0.0], texts[:1], "test", choices=wrong)


def test_bits_of_a_record_are_of_test_and_never_clipped() -> None:
    metrics = {"validation": {"bits": 3.0}, "test": {"bits": -20.0}}
    assert learned({"metrics": metrics, "parameters": {"trainable": 40}}) == {
        "bits": -20.0,
        "bits_per_parameter": -0.5,
    }
    assert learned({"metrics": {"validation": {"bits": 3.0}}})["bits_per_parameter"] is None
    assert learned({"metrics": {"test": {"accuracy": 1.0}}})["bits"] is None


def by_heart(**changes: Any) -> Task:
    usual: dict[str, Any] = {"name": "facts", "type": "causal_lm", "dataset": "pocket-facts"}
    usual |= {"by_heart": True}
    usual |= {"sizes": {"train": 20}, "stop": ";", "metrics": ["bits", "exact_match"], "lr": 1e-3}
    return Task(**usual | {"metric_arguments": {"bits": {"choices": 99}}} | changes)


def read(task: Task) -> dict[str, Any]:
    splits = load_splits(task)
    kind = TASK_TYPES[task.type](task, AutoTokenizer.from_pretrained(HUB), splits)
    asked = {kind.asks(task, row) for row in splits["train"]}
    return {name: read_judged(kind, splits[name], asked).about for name in ("validation", "test")}


def test_a_task_learned_by_heart_is_judged_on_what_it_was_taught() -> None:
    splits = load_splits(by_heart())
    assert splits["train"]["prompt"] == splits["validation"]["prompt"] == splits["test"]["prompt"]
    for about in read(by_heart()).values():
        assert about["by_heart"] == 20 and "also_in_train" not in about
        assert about["information"] == pytest.approx(20 * BITS)
        assert "20 learned by heart" in in_words("test", 20, about)


def test_by_heart_is_said_by_the_task_and_excuses_no_other(tmp_path: Any) -> None:
    """The same facts without the word: what is held out is none of those taught, and a copy is counted."""
    held = load_splits(by_heart(by_heart=False, sizes={"train": 40}))
    assert not {*held["train"]["prompt"]} & {*held["validation"]["prompt"]}
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.csv").write_text("prompt,target\nanna stone age,4\nboris reed age,5\n")
    files = {name: f"{name}.csv" for name in ("train", "validation", "test")}
    copied = by_heart(dataset="csv", by_heart=False, data_dir=str(tmp_path), data_files=files, sizes={})
    for about in read(copied).values():
        assert about["also_in_train"] == 2 and "by_heart" not in about
        assert "2 also in train" in in_words("test", 2, about)


def test_sizes_that_a_task_learned_by_heart_has_no_use_for_are_refused() -> None:
    def checked(*overrides: str) -> Any:
        return compose.check(command_line.rewritten(["task=pocket-facts", *overrides]), multirun=False)

    assert checked()[0].task.by_heart
    with pytest.raises(ValueError, match=r"sizes\.test has no effect: task\.by_heart"):
        checked("task.sizes.test=5")


def test_a_task_without_likelihoods_counts_no_bits() -> None:
    task = SimpleNamespace(type="regression", likelihood=True)
    kind = SimpleNamespace(has_likelihood=False, judgements=(), task=task)
    with pytest.raises(ValueError, match=r"'bits' is of likelihoods, and type=regression, .* gives none"):
        perfect("bits", load("bits"), [1.0], [1.0], kind)
    assert not TASK_TYPES["regression"].has_likelihood and TASK_TYPES["classification"].has_likelihood
    assert perfect("exact_match", load("exact_match"), ["a"], ["a"], kind) == (["a"], ["a"])
