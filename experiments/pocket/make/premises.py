"""Premises of pretraining: the task's own, and comparisons of two people, which the task lacks."""

import random
from dataclasses import dataclass
from typing import Protocol

from lora_zoo.pocket import grammar, inference
from lora_zoo.pocket.statements import Statement

COMPARATIVES = (
    ("older", "younger"),
    ("taller", "shorter"),
    ("heavier", "lighter"),
    ("faster", "slower"),
    ("richer", "poorer"),
    ("stronger", "weaker"),
)


class Premise(Protocol):
    def claim(self, rng: random.Random) -> Statement: ...

    def hypothesis(self, rng: random.Random, label: str) -> Statement: ...


@dataclass(frozen=True)
class ComparisonPremise:
    """The first person is more so than the second; `pole` picks the comparative or its antonym."""

    first: str
    second: str
    dimension: int
    pole: int

    def claim(self, rng: random.Random, negated: bool = False) -> Statement:
        word = COMPARATIVES[self.dimension][self.pole]
        if negated:
            return Statement(f"{self.first} is not {word} than {self.second}")
        rest = f"{word} than {self.second}"
        return Statement(f"{self.first} is {rest}", f"is {self.first} {rest}")

    def hypothesis(self, rng: random.Random, label: str) -> Statement:
        swapped, negated = rng.random() < 0.5, rng.random() < 0.3
        first, second = (self.second, self.first) if swapped else (self.first, self.second)
        if label == "maybe":
            shift = rng.randrange(1, len(COMPARATIVES))
            dimension = (self.dimension + shift) % len(COMPARATIVES)
            return ComparisonPremise(first, second, dimension, rng.randrange(2)).claim(rng, negated)
        flipped = swapped ^ negated ^ (label == "no")
        return ComparisonPremise(first, second, self.dimension, self.pole ^ flipped).claim(rng, negated)


def premise(rng: random.Random, split: str) -> Premise:
    """45 % events, 30 % comparisons, 25 % residences, about people of one split."""
    kind = rng.random()
    if kind < 0.45:
        return inference.happening(rng, split)
    return comparison(rng, split) if kind < 0.75 else inference.residence(rng, split)


def comparison(rng: random.Random, split: str) -> ComparisonPremise:
    first, second = rng.sample(grammar.people(split), 2)
    return ComparisonPremise(first, second, rng.randrange(len(COMPARATIVES)), rng.randrange(2))
