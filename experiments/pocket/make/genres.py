"""Documents for pretraining; `python experiments/pocket/make/genres.py` writes those that it does not use.

They teach the words and skills that the tasks need, never the tasks themselves. No
question is paired with an SQL statement, and no document has the form of a pocket-nli prompt.
"""

import random
from collections.abc import Callable, Iterator

import premises

from lora_zoo.pocket import HELD_OUT, grammar, inference, queries, statements, tables

TASK_WORDS = grammar.words("question sql premise hypothesis label")
"""Words of the tasks' prompts; here they only occur as words to copy."""
SPLIT = "train"
WORDS = 128 * 129
"""Words of the held-out text: the tokens of all its blocks, one of each ahead."""

Genre = Callable[[random.Random], str]


def recite(rng: random.Random) -> str:
    """A list and the same list again: the purest exercise in copying."""
    words = " ".join(_any_word(rng) for _ in range(rng.randint(4, 10)))
    return f"{words} ; {words} ;"


def _any_word(rng: random.Random) -> str:
    pools = (
        grammar.FIRST, grammar.LAST, grammar.TITLE_HEAD, grammar.TITLE_TAIL, grammar.NUMBERS, grammar.YEARS,
        list(grammar.COUNTRY_OF), list(grammar.CATEGORY_OF), list(tables.COLUMNS), TASK_WORDS,
    )  # fmt: skip
    return rng.choice(rng.choice(pools))


def rows(rng: random.Random) -> str:
    """A table with rows, and questions that one cell answers."""
    domain, columns = tables.table(rng)
    cells = [[column.kind(rng, SPLIT) for column in columns] for _ in range(rng.choice((1, 2, 2)))]
    lines = [tables.header(domain, columns)] + ["row " + " | ".join(row) for row in cells]
    for _ in range(rng.choice((2, 3))):
        row = rng.choice(cells)
        where, what = rng.sample(range(len(columns)), 2)
        if sum(other[where] == row[where] for other in cells) == 1:
            condition = queries.Condition(columns[where], "=", row[where])
            query = queries.Query(domain, "", columns[what], (condition,))
            lines.append(f"{query.question(rng)} {row[what]} ;")
    return " ".join(lines)


def lookups(rng: random.Random) -> str:
    """A header, and which of its columns a word or phrase is about."""
    domain, columns = tables.table(rng)
    lines = [tables.header(domain, columns)]
    for column in rng.sample(columns, 3):
        condition = queries.condition(rng, column, SPLIT)
        asked = rng.choice((column.synonym, rng.choice(condition.wordings())))
        lines.append(f"which name is in the table for {asked} ? {column.name} ;")
    return " ".join(lines)


def sql(rng: random.Random) -> str:
    """A header and statements over it, without any question."""
    domain, columns = tables.table(rng)
    statements_ = [queries.query(rng, domain, columns, SPLIT).sql() for _ in range(rng.choice((2, 3)))]
    return " ".join([tables.header(domain, columns), *statements_])


def paraphrase(rng: random.Random) -> str:
    query = queries.query(rng, *tables.table(rng), SPLIT)
    return f"{query.question(rng)} same as {query.question(rng)} ;"


def phrases(rng: random.Random) -> str:
    """Wordings of the same condition; the last one in the signs of SQL."""
    lines = []
    for _ in range(3):
        condition = queries.condition(rng, rng.choice(list(tables.COLUMNS.values())), SPLIT)
        wordings = rng.sample(condition.wordings(), 2)
        lines.append(f"{wordings[0]} same as {wordings[1]} same as {condition.sql()} ;")
    return " ".join(lines)


def facts(rng: random.Random) -> str:
    """Facts: kinds of things, places in countries, words of the same or opposite meaning."""
    return " ".join(rng.choice(_FACTS)(rng) for _ in range(6))


def _pair(format_: str, mapping: dict[str, str]) -> Genre:
    return lambda rng: format_.format(*rng.choice(list(mapping.items())))


def _opposite(rng: random.Random) -> str:
    one, other = rng.sample(rng.choice(premises.COMPARATIVES), 2)
    return f"{one} is the opposite of {other} ;"


def _same_verb(rng: random.Random) -> str:
    (past, base), (other_past, other_base) = rng.sample(rng.choice(grammar.VERBS + grammar.RELATIONS), 2)
    past_forms, base_forms = f"{past} same as {other_past} ;", f"{base} same as {other_base} ;"
    return rng.choice((past_forms, base_forms, f"{base} and {past} ;"))


_SYNONYMS = {column.synonym: column.name for column in tables.COLUMNS.values()}
_FACTS: list[Genre] = [
    _pair("{0} is a kind of {1} ;", grammar.CATEGORY_OF),
    _pair("{0} is in {1} ;", grammar.COUNTRY_OF),
    _pair("{0} is in {1} ;", grammar.SEASON_OF),
    _pair("{0} same as {1} ;", _SYNONYMS),
    _pair("{1} same as {0} ;", _SYNONYMS),
    _opposite,
    _same_verb,
]


def story(rng: random.Random) -> str:
    """Two or three events and questions for one part of one of them."""
    events = [statements.event(rng, SPLIT) for _ in range(rng.choice((2, 3)))]
    lines = [f"{event.claim(rng).sentence} ." for event in events]
    for event in rng.sample(events, 2):
        past, base = rng.choice(grammar.VERBS[event.verb])
        who = f"who {past} {statements.with_article(event.thing)} ? {event.who} ;"
        lines.append(rng.choice((who, f"what did {event.who} {base} ? {event.thing} ;")))
    return " ".join(lines)


def so(rng: random.Random) -> str:
    premise = premises.premise(rng, SPLIT)
    return f"{premise.claim(rng).sentence} so {premise.hypothesis(rng, 'yes').sentence} ;"


def restate(rng: random.Random) -> str:
    premise = premises.premise(rng, SPLIT)
    return f"{premise.claim(rng).sentence} same as {premise.claim(rng).sentence} ;"


def asked(rng: random.Random) -> str:
    """A statement and questions with yes, no or maybe as answers."""
    premise = premises.premise(rng, SPLIT)
    lines = [f"{premise.claim(rng).sentence} ."]
    for _ in range(rng.choice((2, 3, 4))):
        label = rng.choice(inference.LABELS)
        claim = premise.hypothesis(rng, label)
        plain = claim.question and rng.random() < 0.7
        lines.append(f"{claim.question if plain else f'is it true that {claim.sentence}'} ? {label} ;")
    return " ".join(lines)


# Shares of documents in three stages that end at these fractions of pretraining: first copying, then meaning.
STAGES: tuple[tuple[float, dict[Genre, float]], ...] = (
    (0.10, {recite: 20, rows: 14, lookups: 6, sql: 10, paraphrase: 12, phrases: 8, facts: 10, story: 6, so: 6,
            restate: 6, asked: 12}),
    (0.50, {recite: 4, rows: 8, lookups: 8, sql: 7, paraphrase: 11, phrases: 7, facts: 8, story: 4, so: 6,
            restate: 3, asked: 50}),
    (1.00, {recite: 2, rows: 6, lookups: 8, sql: 7, paraphrase: 10, phrases: 5, facts: 5, story: 2, so: 4,
            restate: 2, asked: 60}),
)  # fmt: skip


def documents(rng: random.Random, progress: Callable[[], float]) -> Iterator[str]:
    """Endless documents; `progress` (0 to 1) is read before each and picks the stage."""
    while True:
        shares = next(shares for end, shares in STAGES if progress() <= end)
        genre = rng.choices(list(shares), weights=list(shares.values()))[0]
        yield genre(rng)


def held_out(least: int) -> str:
    """Documents of the last stage with `least` words or more, a line each, of a seed of their own."""
    lines, words = [], 0
    for document in documents(random.Random("retention"), lambda: 1.0):
        lines.append(document)
        words += len(document.split())
        if words >= least:
            return "\n".join(lines) + "\n"
    raise AssertionError("documents are endless")


if __name__ == "__main__":
    HELD_OUT.write_text(held_out(WORDS))
