"""Premises that can say what they entail, contradict and leave open."""

import random
from dataclasses import dataclass

from lora_zoo.pocket import grammar, statements
from lora_zoo.pocket.statements import Statement

LABELS = ("yes", "no", "maybe")
"""Entailed, contradicted, left open."""


@dataclass(frozen=True)
class Happening:
    """An event that happened, as did all that is less specific; or did not, nor did what is more specific."""

    event: statements.Event
    negated: bool

    @property
    def who(self) -> str:
        return self.event.who

    def claim(self, rng: random.Random) -> Statement:
        return self.event.claim(rng, self.negated)

    def hypothesis(self, rng: random.Random, label: str) -> Statement:
        if label == "maybe":
            event = self._open(rng)
            return event.claim(rng, rng.random() < 0.5)
        event = self.event
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            event = rng.choice(self._implied(rng, event) or [event])
        return event.claim(rng, self.negated == (label == "yes"))

    def _implied(self, rng: random.Random, event: statements.Event) -> list[statements.Event]:
        return event.stronger(rng) if self.negated else event.weaker()

    def _open(self, rng: random.Random) -> statements.Event:
        reverse = self.event.weaker() if self.negated else self.event.stronger(rng)
        steps = reverse if reverse and rng.random() < 0.6 else self.event.other(rng)
        return rng.choice(steps)


@dataclass(frozen=True)
class Residence:
    """Somebody lives, works or studies in one place only; the other two relations are then left open."""

    who: str
    relation: int
    place: str

    def claim(self, rng: random.Random, negated: bool = False) -> Statement:
        third, base = rng.choice(grammar.RELATIONS[self.relation])
        if negated:
            return Statement(f"{self.who} does not {base} in {self.place}")
        return Statement(f"{self.who} {third} in {self.place}", f"does {self.who} {base} in {self.place}")

    def hypothesis(self, rng: random.Random, label: str) -> Statement:
        negated = rng.random() < 0.3
        if label == "maybe":
            return self._open(rng).claim(rng, negated)
        holds = (label == "yes") ^ negated
        place = rng.choice(self._implied() if holds else self._excluded())
        return Residence(self.who, self.relation, place).claim(rng, negated)

    def _open(self, rng: random.Random) -> "Residence":
        if self.place in grammar.CITIES and rng.random() < 0.6:
            return Residence(self.who, self.relation, rng.choice(grammar.CITIES[self.place]))
        relation = (self.relation + rng.choice((1, 2))) % len(grammar.RELATIONS)
        return Residence(self.who, relation, rng.choice([self.place, *self._implied()]))

    def _implied(self) -> list[str]:
        country = grammar.COUNTRY_OF.get(self.place)
        return [self.place, country, country] if country else [self.place]

    def _excluded(self) -> list[str]:
        country = grammar.COUNTRY_OF.get(self.place, self.place)
        elsewhere = [city for city, its in grammar.COUNTRY_OF.items() if its != country]
        siblings = [city for city in grammar.CITIES[country] if self.place not in (city, country)]
        others = [other for other in grammar.COUNTRIES if other != country]
        return others + elsewhere[:: len(grammar.COUNTRIES) // 3] + siblings * 4


def happening(rng: random.Random, split: str) -> Happening:
    return Happening(statements.event(rng, split), rng.random() < 0.5)


def residence(rng: random.Random, split: str) -> Residence:
    place = rng.choice(list(grammar.COUNTRY_OF) if rng.random() < 0.6 else grammar.COUNTRIES)
    return Residence(rng.choice(grammar.people(split)), rng.randrange(len(grammar.RELATIONS)), place)
