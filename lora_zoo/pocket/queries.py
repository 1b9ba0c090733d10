"""Queries over one table, as SQL and as several questions with the same meaning."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lora_zoo.pocket.tables import Column

AGGREGATES = {
    "": ("what is the", "show the", "list the", "which is the"),
    "count": ("count the", "what is the number of", "how many values of"),
    "max": ("what is the highest", "what is the maximum", "show the largest"),
    "min": ("what is the lowest", "what is the minimum", "show the smallest"),
    "avg": ("what is the average", "what is the mean"),
    "sum": ("what is the total", "what is the sum of the"),
}
ORDERED_ONLY = ("max", "min", "avg", "sum")
WORDS_OF = {"=": "is", ">": "is above", "<": "is below"}


@dataclass(frozen=True)
class Condition:
    column: Column
    sign: str
    value: str

    def sql(self) -> str:
        return f"{self.column.name} {self.sign} {self.value}"

    def wordings(self) -> list[str]:
        """The condition's own phrase first, then its column's two names."""
        phrase = {"=": self.column.equal, ">": self.column.over, "<": self.column.under}[self.sign]
        spelled = [f"whose {name} {WORDS_OF[self.sign]}" for name in (self.column.name, self.column.synonym)]
        return [f"{words} {self.value}" for words in (phrase, *spelled)]


@dataclass(frozen=True)
class Query:
    domain: str
    aggregate: str
    target: Column
    conditions: tuple[Condition, ...]

    def sql(self) -> str:
        what = f"{self.aggregate} ( {self.target.name} )" if self.aggregate else self.target.name
        where = " and ".join(condition.sql() for condition in self.conditions)
        return f"select {what} from {self.domain} where {where} ;"

    def question(self, rng: random.Random) -> str:
        """One wording, with the conditions in the order of the SQL."""
        opening = rng.choice(AGGREGATES[self.aggregate])
        what = f"{opening} {rng.choice((self.target.name, self.target.synonym))}"
        where = " and ".join(rng.choice(condition.wordings()) for condition in self.conditions)
        return f"{what} of {self.domain}s {where} ?"

    @property
    def names_entity(self) -> bool:
        return any(condition.column.names_entity for condition in self.conditions)


def condition(rng: random.Random, column: Column, split: str) -> Condition:
    sign = rng.choice("=><") if column.over else "="
    return Condition(column, sign, column.kind(rng, split))


def query(
    rng: random.Random, domain: str, columns: list[Column], split: str, conditions: Sequence[int] = (1, 2)
) -> Query:
    """A query with as many conditions as one of `conditions`; four in ten ask for an aggregate."""
    target, *others = rng.sample(columns, 1 + rng.choice(conditions))
    fitting = [name for name in AGGREGATES if name and (target.over or name not in ORDERED_ONLY)]
    aggregate = rng.choice(fitting) if rng.random() < 0.4 else ""
    return Query(domain, aggregate, target, tuple(condition(rng, column, split) for column in others))
