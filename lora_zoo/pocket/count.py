"""pocket-count: count the words of a list that are of one kind; scored by exact match."""

from typing import Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar


@register("pocket-count")
def examples(split: str, size: int, seed: int, *, difficulty: Literal[1, 2, 3] = 1) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`: lists of 3 + `difficulty` words, of which 1 to
    1 + `difficulty` are of the kind, each number as likely.
    """
    rng, length = drawing.randomness("pocket-count", split, seed), 3 + difficulty

    def draw() -> tuple[str, str] | None:
        kind, number = rng.choice(list(grammar.THINGS)), rng.randint(1, 1 + difficulty)
        others = [word for word, of in grammar.CATEGORY_OF.items() if of != kind]
        words = [*rng.sample(grammar.THINGS[kind], number), *rng.sample(others, length - number)]
        rng.shuffle(words)
        prompt = f"list : {' '.join(words)} . how many {kind} ? label :"
        return (prompt, f"{number} ;") if grammar.split_of(prompt) == split else None

    return drawing.targets(drawing.distinct(draw, size))
