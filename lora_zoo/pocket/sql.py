"""pocket-sql: translate a question about a table into SQL; scored by exact match of the greedy answer.

pocket-sql-hard asks the same, with more conditions, of tables whose header calls a column by either of its
two names, while the question may use the other one.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar, queries, tables
from lora_zoo.pocket.tables import Column

Draw = Callable[[random.Random, str], tuple[str, str, bool]]
"""Prompt, target, and whether a condition holds a name or title."""


@register("pocket-sql")
def examples(split: str, size: int, seed: int) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`; no prompt occurs in two splits.

    Prompts with a name or title differ between splits because their entities do; the others belong to the
    split that their text hashes to.
    """
    return _distinct(drawing.randomness("pocket-sql", split, seed), split, size, _draw)


@register("pocket-sql-hard")
def hard_examples(
    split: str, size: int, seed: int, *, difficulty: Literal[1, 2, 3, 4] = 1
) -> list[dict[str, str]]:
    """The same with one to `difficulty` conditions under headers that use either name of a column."""
    rng = drawing.randomness("pocket-sql-hard", split, seed)
    return _distinct(rng, split, size, partial(_draw_hard, most=difficulty))


def _distinct(rng: random.Random, split: str, size: int, draw: Draw) -> list[dict[str, str]]:
    def fitting() -> tuple[str, str]:
        """A draw of the split; `named` is decided before, so that all splits have the same mixture."""
        named = draw(rng, split)[2]
        while True:
            prompt, target, has_name = draw(rng, split)
            if has_name == named and (named or grammar.split_of(prompt) == split):
                return prompt, target

    return drawing.targets(drawing.distinct(fitting, size))


def _draw(rng: random.Random, split: str) -> tuple[str, str, bool]:
    domain, columns = tables.table(rng)
    return _asked(rng, domain, columns, queries.query(rng, domain, columns, split))


def _draw_hard(rng: random.Random, split: str, most: int) -> tuple[str, str, bool]:
    domain = rng.choice(list(tables.DOMAINS))
    columns = [_renamed(rng, column) for column in rng.sample(tables.DOMAINS[domain], 5)]
    return _asked(rng, domain, columns, queries.query(rng, domain, columns, split, range(1, most + 1)))


def _renamed(rng: random.Random, column: Column) -> Column:
    """The column under either of its names; the question may use both."""
    turned = replace(column, name=column.synonym, synonym=column.name)
    return rng.choice((column, turned))


def _asked(
    rng: random.Random, domain: str, columns: list[Column], query: queries.Query
) -> tuple[str, str, bool]:
    prompt = f"{tables.header(domain, columns)} question : {query.question(rng)} sql :"
    return prompt, query.sql(), query.names_entity
