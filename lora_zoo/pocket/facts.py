"""pocket-facts: facts that only memory can tell, to be learned by heart: how much does an adapter hold?

A fact is two people and a number, "anna stone boris reed age" -> "42". All 99 numbers are equally likely, so
that each fact holds log2(99) = 6.63 bits to one who knows nothing; with a structure, most of them follow from
others, and all together hold less:

| structure | the number of a fact | bits of N facts, over log2(99) |
|---|---|---|
| none | drawn for it alone | N |
| shared | that of its first person | F: different first persons |
| additive | the sum of what its two people hide, modulo 99 | F + S - C: S different second persons, and C |
| | | parts that the facts fall into, when each joins its first and its second person |

(For additive: adding c to what the first persons of a part hide, and taking it from the second ones, changes
no fact; all else does. So of 99^(F+S) draws 99^C at a time are the same facts.)
"""

import math
import random
from typing import Any, Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import grammar

CHOICES = len(grammar.NUMBERS)
Structure = Literal["none", "shared", "additive"]


@register("pocket-facts")
def examples(
    split: str, size: int, seed: int, *, structure: Structure = "none", people: int = 100
) -> list[dict[str, Any]]:
    """`size` facts on so many `people` of the split, the same pairs of them in every structure.

    `information` is what a fact holds beyond those before it, in bits: log2(99), or 0 where it follows from
    them. ValueError for more people than the split has, and for more facts than there are pairs of them.
    """
    if split not in grammar.SPLITS:
        raise ValueError(f"pocket-facts: split is {split!r}, must be one of {', '.join(grammar.SPLITS)}")
    known = grammar.people(split)
    if not 2 <= people <= len(known):
        raise ValueError(f"pocket-facts: people must lie between 2 and {len(known)}; got {people}")
    if size > people * (people - 1):
        most = people * (people - 1)
        raise ValueError(
            f"pocket-facts: of {people} people there are {most} pairs, and {size} facts; add people"
        )
    pairs = _pairs(random.Random(f"pocket-facts {split} {seed}"), known, people, size)
    numbers = _numbers(random.Random(f"pocket-facts {structure} {split} {seed}"), structure, pairs)
    new = _is_new(structure, pairs)
    return [
        {"prompt": f"{a} {b} age", "target": str(number), "information": math.log2(CHOICES) * told}
        for (a, b), number, told in zip(pairs, numbers, new, strict=True)
    ]


def _pairs(rng: random.Random, known: list[str], people: int, size: int) -> list[tuple[str, str]]:
    pool = rng.sample(known, people)
    drawn = (divmod(number, people - 1) for number in rng.sample(range(people * (people - 1)), size))
    return [(pool[first], pool[second + (second >= first)]) for first, second in drawn]


def _numbers(rng: random.Random, structure: Structure, pairs: list[tuple[str, str]]) -> list[int]:
    """The number of each fact, 1 to 99."""
    if structure == "none":
        return [rng.randint(1, CHOICES) for _ in pairs]
    every = sorted({name for pair in pairs for name in pair})
    first, second = ({name: rng.randrange(CHOICES) for name in every} for _ in range(2))
    if structure == "shared":
        return [1 + first[a] for a, _ in pairs]
    return [1 + (first[a] + second[b]) % CHOICES for a, b in pairs]


def _is_new(structure: Structure, pairs: list[tuple[str, str]]) -> list[bool]:
    """For each fact, if it does not follow from those before it."""
    if structure == "none":
        return [True] * len(pairs)
    if structure == "shared":
        earliest = {a: number for number, (a, _) in reversed([*enumerate(pairs)])}
        return [earliest[a] == number for number, (a, _) in enumerate(pairs)]
    part: dict[tuple[str, str], tuple[str, str]] = {}
    return [_joined(part, ("first", a), ("second", b)) for a, b in pairs]


def _joined(part: dict[tuple[str, str], tuple[str, str]], a: tuple[str, str], b: tuple[str, str]) -> bool:
    """Join the parts of two persons; False where they were in one already."""
    one, other = _part_of(part, a), _part_of(part, b)
    part[one] = other
    return one != other


def _part_of(part: dict[tuple[str, str], tuple[str, str]], person: tuple[str, str]) -> tuple[str, str]:
    while (further := part.setdefault(person, person)) != person:
        person = further
    return person
