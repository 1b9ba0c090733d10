"""pocket-topic: sort a sentence under one of four words, by the kind of thing that it is about."""

import random

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar, statements

TOPICS = {
    "drama": ("animal", "tool"),
    "horror": ("fruit", "vehicle"),
    "comedy": ("garment", "weapon"),
    "thriller": ("instrument", "container"),
}
"""Two kinds of things each. The words mean nothing of this to the base."""
TOPIC_OF = {kind: topic for topic, kinds in TOPICS.items() for kind in kinds}


@register("pocket-topic")
def examples(split: str, size: int, seed: int) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `label`.

    Every prompt is about people of its split, so no validation or test prompt occurs in another split.
    """
    rng = drawing.randomness("pocket-topic", split, seed)
    found = drawing.distinct(lambda: _draw(rng, split), size)
    return [{"prompt": prompt, "label": label} for prompt, label in found.items()]


def _draw(rng: random.Random, split: str) -> tuple[str, str]:
    event = statements.event(rng, split)
    topic = TOPIC_OF[grammar.CATEGORY_OF.get(event.thing, event.thing)]
    return f"{event.claim(rng, rng.random() < 0.3).sentence} . genre :", topic
