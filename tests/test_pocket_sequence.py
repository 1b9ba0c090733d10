"""The small tasks of a sequence: one right answer each, words of the base, nothing in two splits.

A solver here, which shares no code with the generators, answers every prompt from its text alone.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
from transformers import AutoTokenizer

from lora_zoo.core.generators import GENERATORS
from lora_zoo.pocket import HUB, grammar

SIZES = {"train": 200, "validation": 40, "test": 60}
PAIRS = dict(pair for a, b in grammar.VERBS for pair in ((a[0], b[0]), (b[0], a[0])))
BASES = {past: base for group in grammar.VERBS for past, base in group}
TOPICS = {
    "drama": "animal tool",
    "horror": "fruit vehicle",
    "comedy": "garment weapon",
    "thriller": "instrument container",
}


def parts(prompt: str) -> tuple[list[str], list[str]]:
    listed, _, asked = prompt.removeprefix("list : ").removesuffix(" ? label :").partition(" . which is ")
    return listed.split(), asked.split()


def picked(prompt: str) -> str:
    words, (kind,) = parts(prompt)
    (found,) = (word for word in words if grammar.CATEGORY_OF[word] == kind)
    return found


def looked_up(prompt: str) -> str:
    words, (side, given) = parts(prompt)
    return words[words.index(given) + (1 if side == "after" else -1)]


def rewritten(prompt: str) -> str:
    sentence, form = prompt.removesuffix(" :").split(" . ")
    first, last, did, *rest = sentence.split()
    if form == "grade":
        return " ".join([first, last, PAIRS[did], *rest])
    told = [first, last] if form == "score" else [first, last, "did", "not"]
    return " ".join([*(["did"] if form == "score" else []), *told, BASES[did], *rest])


def topic(prompt: str) -> str:
    words = prompt.split(" . ", maxsplit=1)[0].split()
    (kind,) = {grammar.CATEGORY_OF.get(w, w) for w in words} & grammar.THINGS.keys()
    return next(name for name, kinds in TOPICS.items() if kind in kinds.split())


SOLVERS: dict[str, Callable[[str], str]] = {
    "pocket-pick": picked,
    "pocket-lookup": looked_up,
    "pocket-rewrite": rewritten,
    "pocket-topic": topic,
}
every_task = pytest.mark.parametrize("name", SOLVERS)


@cache
def made(name: str, seed: int = 0, **options: int) -> dict[str, list[dict[str, str]]]:
    return {split: GENERATORS[name](split, size, seed, **options) for split, size in SIZES.items()}


@every_task
def test_a_prompt_has_one_right_answer_of_words_that_the_base_knows(name: str) -> None:
    known = set(AutoTokenizer.from_pretrained(HUB).get_vocab())
    options = [{"difficulty": n} for n in (1, 3)] if name in ("pocket-pick", "pocket-lookup") else [{}]
    for own in options:
        for rows in made(name, **own).values():
            for row in rows:
                right = row.get("label") or row["target"].removesuffix(" ;")
                assert SOLVERS[name](row["prompt"]) == right, row
                assert {*row["prompt"].split(), *right.split()} <= known


@every_task
def test_no_prompt_is_in_two_splits_or_twice_in_one(name: str) -> None:
    one, other = ({s: {e["prompt"] for e in rows} for s, rows in made(name, n).items()} for n in (0, 1))
    assert {split: len(prompts) for split, prompts in one.items()} == SIZES
    assert not any(one[a] & two[b] for two in (one, other) for a in SIZES for b in SIZES if a != b)


@every_task
def test_no_answer_is_right_for_most(name: str) -> None:
    answers = Counter(row.get("label") or row["target"] for row in made(name)["train"])
    assert max(answers.values()) <= 0.4 * SIZES["train"], answers.most_common(2)


def test_a_sequence_holds_as_many_of_each_task_under_its_name() -> None:
    tasks = ["pocket-topic", "pocket-pick"]
    rows = GENERATORS["pocket-sequence"]("test", 7, 0, tasks=tasks)
    assert [row["task"] for row in rows] == ["pocket-topic"] * 4 + ["pocket-pick"] * 3
    alone = GENERATORS["pocket-topic"]("test", 4, 0)
    told = [{"prompt": e["prompt"], "target": f"{e['label']} ;", "task": "pocket-topic"} for e in alone]
    assert rows[:4] == told
    assert rows[4:] == [e | {"task": "pocket-pick"} for e in GENERATORS["pocket-pick"]("test", 3, 0)]
    for wrong in ([], ["pocket-pick", "pocket-pick"], ["pocket-sequence"]):
        with pytest.raises(ValueError, match="pocket-sequence: tasks"):
            GENERATORS["pocket-sequence"]("test", 4, 0, tasks=wrong)
