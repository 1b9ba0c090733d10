"""pocket-lookup: find the word that stands after, or before, another one in a list; scored by exact match."""

from typing import Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar
from lora_zoo.pocket.lists import WORDS


@register("pocket-lookup")
def examples(split: str, size: int, seed: int, *, difficulty: Literal[1, 2, 3] = 1) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`; lists of 3 + `difficulty` words, none twice."""
    rng, length = drawing.randomness("pocket-lookup", split, seed), 3 + difficulty

    def draw() -> tuple[str, str] | None:
        words, side = rng.sample(WORDS, length), rng.choice(("after", "before"))
        first = rng.randrange(length - 1)
        given, asked = words[first : first + 2][:: 1 if side == "after" else -1]
        prompt = f"list : {' '.join(words)} . which is {side} {given} ? label :"
        return (prompt, f"{asked} ;") if grammar.split_of(prompt) == split else None

    return drawing.targets(drawing.distinct(draw, size))
