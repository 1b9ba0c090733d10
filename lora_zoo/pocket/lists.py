"""pocket-lists: edit a list of words, one edit after the other; scored by exact match."""

import random
from collections.abc import Callable, Iterable
from typing import Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar

Words = tuple[str, ...]
EDITS: dict[str, Callable[[Words], Words]] = {
    "opposite": lambda words: words[::-1],
    "carry": lambda words: (*words[1:], words[0]),
    "haul": lambda words: (words[-1], *words[:-1]),
    "fix": lambda words: (words[1], words[0], *words[2:]),
    "repair": lambda words: (*words[:-2], words[-1], words[-2]),
    "lose": lambda words: words[1:],
    "misplace": lambda words: words[:-1],
    "same": lambda words: (*words, words[-1]),
}
"""Backwards; the first to the end, the last to the front; the first, the last two exchanged; without the
first, the last; the last twice. The names mean nothing of this to the base."""
WORDS = [*grammar.CATEGORY_OF, *grammar.COLORS]
LENGTH = 4


def edited(words: Words, edits: Iterable[str]) -> Words:
    """`words` after the edits, the first one first."""
    for edit in edits:
        words = EDITS[edit](words)
    return words


@register("pocket-lists")
def examples(split: str, size: int, seed: int, *, difficulty: Literal[1, 2, 3] = 1) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`; a list gets `difficulty` edits."""
    rng = drawing.randomness("pocket-lists", split, seed)

    def draw() -> tuple[str, str] | None:
        words, edits = rng.sample(WORDS, LENGTH), _edits(rng, difficulty)
        prompt = f"list : {' '.join(words)} . {' . '.join(edits)} label :"
        target = f"{' '.join(edited(tuple(words), edits))} ;"
        return (prompt, target) if grammar.split_of(prompt) == split else None

    return drawing.targets(drawing.distinct(draw, size))


def _edits(rng: random.Random, number: int) -> list[str]:
    return [rng.choice(list(EDITS)) for _ in range(number)]
