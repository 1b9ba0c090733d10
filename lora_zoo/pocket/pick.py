"""pocket-pick: pick from a list the one word that is of a kind; scored by exact match."""

from typing import Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar


@register("pocket-pick")
def examples(split: str, size: int, seed: int, *, difficulty: Literal[1, 2, 3] = 1) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`; lists of 2 + `difficulty` words."""
    rng, others = drawing.randomness("pocket-pick", split, seed), 1 + difficulty

    def draw() -> tuple[str, str] | None:
        kind, *kinds = rng.sample(list(grammar.THINGS), 1 + others)
        picked = rng.choice(grammar.THINGS[kind])
        words = [picked, *(rng.choice(grammar.THINGS[other]) for other in kinds)]
        rng.shuffle(words)
        prompt = f"list : {' '.join(words)} . which is {kind} ? label :"
        return (prompt, f"{picked} ;") if grammar.split_of(prompt) == split else None

    return drawing.targets(drawing.distinct(draw, size))
