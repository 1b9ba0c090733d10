"""The generated tasks with a difficulty: words of the base, one right answer each, nothing in two splits.

A solver here, which shares no code with the generators, answers every prompt from its text alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

import pytest
from transformers import AutoTokenizer

from lora_zoo.core.generators import GENERATORS, complete_options
from lora_zoo.pocket import HUB, drawing, grammar, tables

Examples = list[dict[str, str]]
SIZES = {"train": 300, "validation": 60, "test": 90}
LEVELS = {"pocket-lists": 3, "pocket-nli-hard": 4, "pocket-sql-hard": 4, "pocket-style": 7}
CASES = [(name, level) for name, most in LEVELS.items() for level in range(1, most + 1)]
every_case = pytest.mark.parametrize(("name", "level"), CASES)
every_task = pytest.mark.parametrize("name", LEVELS)


@cache
def made(name: str, level: int, seed: int = 0) -> dict[str, Examples]:
    return {split: GENERATORS[name](split, n, seed, difficulty=level) for split, n in SIZES.items()}


def answer(example: dict[str, str]) -> str:
    return example.get("label") or example["target"].removesuffix(" ;")


ORDERS = {
    "opposite": lambda n: range(n)[::-1],
    "carry": lambda n: [*range(1, n), 0],
    "haul": lambda n: [n - 1, *range(n - 1)],
    "fix": lambda n: [1, 0, *range(2, n)],
    "repair": lambda n: [*range(n - 2), n - 1, n - 2],
    "lose": lambda n: range(1, n),
    "misplace": lambda n: range(n - 1),
    "same": lambda n: [*range(n), n - 1],
}


def solved_list(prompt: str) -> str:
    words, *edits = (part.split() for part in prompt.removesuffix(" label :").split(" : ")[1].split(" . "))
    for (edit,) in edits:
        words = [words[position] for position in ORDERS[edit](len(words))]
    return " ".join(words)


PAIRS = dict(pair for a, b in grammar.VERBS for pair in ((a[0], b[0]), (b[0], a[0])))
ABOVE = grammar.COUNTRY_OF | grammar.CATEGORY_OF | grammar.SEASON_OF
PLACES = {*grammar.COUNTRY_OF, *grammar.CITIES}
TIMES = {*grammar.SEASON_OF, *grammar.SEASONS}


RULES = {
    "press": (0, 1, 0, 1, 0),
    "musical": (0, 0, 1, 0, 1),
    "legal": (1, 0, 1, 1, 0),
    "research": (0, 1, 0, 1, 1),
    "support": (1, 0, 0, 0, 1),
    "sales": (1, 1, 1, 0, 0),
    "western": (0, 1, 1, 1, 0),
    "design": (1, 1, 1, 0, 1),
}
"""Of each style: name, verb and colour turned, time and place first."""


def solved_style(prompt: str) -> str:
    sentence, style = prompt.removesuffix(" style :").split(" . ")
    name, verb, color, time_first, place_first = RULES[style]
    first, last, did, _, *rest = sentence.split()
    who = [last, first] if name else [first, last]
    (thing,) = (w for w in rest if ABOVE.get(w, w) in grammar.THINGS)
    colors = [w for w in rest if w in grammar.COLORS]
    noun = [thing, *(word for c in colors for word in ("painted", c))] if color else [*colors, thing]
    place, time = ([f"in {w}" for w in rest if w in kind] for kind in (PLACES, TIMES))
    front, back = time * time_first + place * place_first, place * (1 - place_first) + time * (1 - time_first)
    article = "an" if noun[0][0] in "aeiou" else "a"
    return " ".join([*front, *who, PAIRS[did] if verb else did, article, *noun, *back])


SIGN_WORDS = {"is": "=", "is above": ">", "is below": "<"}
OPENINGS = {
    "count": ["count the", "what is the number of", "how many values of"],
    "max": ["what is the highest", "what is the maximum", "show the largest"],
    "min": ["what is the lowest", "what is the minimum", "show the smallest"],
    "avg": ["what is the average", "what is the mean"],
    "sum": ["what is the total", "what is the sum of the"],
    "": ["what is the", "show the", "list the", "which is the"],
}  # fmt: skip


def longest(text: str, phrases: Iterable[str]) -> str:
    return max((p for p in phrases if f"{text} ".startswith(f"{p} ")), key=len)


def solved_query(prompt: str) -> str:
    head, _, question = prompt.removesuffix(" ? sql :").partition(" question : ")
    domain, names = head.removeprefix("table ").split(" : ")
    shown = {}  # either name of a column -> the header's
    phrases = {}  # a condition's words -> column and sign
    for header in names.split(" | "):
        column = next(c for c in tables.COLUMNS.values() if header in (c.name, c.synonym))
        shown |= {column.name: header, column.synonym: header}
        own = {column.equal: "=", column.over: ">", column.under: "<"}
        asked = {f"whose {n} {w}": s for n in (column.name, column.synonym) for w, s in SIGN_WORDS.items()}
        phrases |= {words: (header, sign) for words, sign in (own | asked).items() if words}
    opening = longest(question, [o for group in OPENINGS.values() for o in group])
    aggregate = next(a for a, group in OPENINGS.items() if opening in group)
    target, _, where = question.removeprefix(opening + " ").partition(f" of {domain}s ")
    conditions = []
    for part in where.split(" and "):
        words = longest(part, phrases)
        conditions.append(" ".join([*phrases[words], part.removeprefix(words + " ")]))
    what = f"{aggregate} ( {shown[target]} )" if aggregate else shown[target]
    return f"select {what} from {domain} where {' and '.join(conditions)}"


BASE_OF = {base: past for group in grammar.VERBS for past, base in group}
MEANING = {past: number for number, group in enumerate(grammar.VERBS) for past, _ in group}
RELATION = {w: number for number, group in enumerate(grammar.RELATIONS) for forms in group for w in forms}


def parsed(sentence: str) -> tuple[str, bool, object, dict[str, str]]:
    """Who, whether denied, what was done, and its parts by kind."""
    first, last, *rest = sentence.split()
    denied = "not" in rest
    verb, *others = rest[2:] if denied else rest
    what = f"relation {RELATION[verb]}" if verb in RELATION else MEANING[BASE_OF.get(verb, verb)]
    parts = {}
    for word in set(others) - {"a", "an", "in"}:
        kind = "color" if word in grammar.COLORS else "place" if word in PLACES else "time"
        parts["thing" if ABOVE.get(word, word) in grammar.THINGS else kind] = word
    return f"{first} {last}", denied, what, parts


def covers(wide: dict[str, str], narrow: dict[str, str]) -> bool:
    return all(
        kind in narrow and word in (narrow[kind], ABOVE.get(narrow[kind])) for kind, word in wide.items()
    )


def solved_entailment(prompt: str) -> str:
    premises, _, asked = (
        prompt.removeprefix("premise : ").removesuffix(" . label :").partition(" . hypothesis : ")
    )
    who, denied, what, parts = parsed(asked)
    (told,) = (p for p in map(parsed, premises.split(" . ")) if p[0] == who)
    _, false, did, known = told
    if what != did:
        return "maybe"
    if str(what).startswith("relation"):
        here, there = known["place"], parts["place"]
        open_ = there != here and ABOVE.get(there) == here
        holds = there in (here, ABOVE.get(here))
        return "maybe" if open_ else "yes" if holds != denied else "no"
    follows = covers(known, parts) if false else covers(parts, known)
    return "maybe" if not follows else "yes" if denied == false else "no"


SOLVERS: dict[str, Callable[[str], str]] = {
    "pocket-lists": solved_list,
    "pocket-nli-hard": solved_entailment,
    "pocket-sql-hard": solved_query,
    "pocket-style": solved_style,
}


@every_case
def test_a_prompt_has_one_right_answer_which_its_text_alone_tells(name: str, level: int) -> None:
    for rows in made(name, level).values():
        wrong = [(e, told) for e in rows if (told := SOLVERS[name](e["prompt"])) != answer(e)]
        assert not wrong, wrong[:3]


@pytest.mark.parametrize("name", ["pocket-nli", "pocket-sql"])
def test_so_has_a_prompt_of_the_tasks_without_a_difficulty(name: str) -> None:
    for e in GENERATORS[name]("test", 100, 0):
        assert SOLVERS[f"{name}-hard"](e["prompt"]) == answer(e), e


@every_case
def test_no_prompt_is_in_two_splits_or_twice_in_one(name: str, level: int) -> None:
    one, other = (
        {s: {e["prompt"] for e in rows} for s, rows in made(name, level, n).items()} for n in (0, 1)
    )
    assert {split: len(prompts) for split, prompts in one.items()} == SIZES
    assert not any(one[a] & two[b] for two in (one, other) for a in SIZES for b in SIZES if a != b)


@cache
def vocabulary() -> set[str]:
    return set(AutoTokenizer.from_pretrained(HUB).get_vocab())


@every_case
def test_the_base_has_every_word_and_no_answer_is_frequent(name: str, level: int) -> None:
    known = vocabulary()
    for rows in made(name, level).values():
        assert {word for e in rows for text in e.values() for word in text.split()} <= known
        most = Counter(map(answer, rows)).most_common(1)[0][1] / len(rows)
        assert most <= (0.34 if name == "pocket-nli-hard" else 0.05)


HASHES = {
    "pocket-lists": "647bd87bd46cfcda",
    "pocket-nli-hard": "47365ff970407515",
    "pocket-sql-hard": "309ce4d3382808c0",
    "pocket-style": "874086874b8e69a6",
}


@every_task
def test_the_examples_are_those_that_were_measured(name: str) -> None:
    text = json.dumps({level: made(name, level) for level in range(1, LEVELS[name] + 1)})
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == HASHES[name]


@every_task
def test_a_difficulty_that_there_is_not_is_refused(name: str) -> None:
    assert complete_options(name, {"difficulty": 1}) == {"difficulty": 1}
    assert complete_options(name, {})["difficulty"] in range(1, LEVELS[name] + 1)
    for wrong in ({"difficulty": 9}, {"difficulty": "2"}, {"hardness": 1}):
        with pytest.raises(ValueError, match=rf"task.options of {name}: .*difficulty"):
            complete_options(name, wrong)
    with pytest.raises(ValueError, match="validation"):
        GENERATORS[name]("dev", 1, 0)


def test_a_generator_that_runs_dry_says_so() -> None:
    with pytest.raises(ValueError, match=r"1 different examples of 2.*task\.sizes"):
        drawing.distinct(lambda: ("the only prompt", "its answer"), 2)
