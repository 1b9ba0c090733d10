"""pocket-style: tell the same event in another style; exact match judges style and content at once."""

import random
from typing import Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar, statements

STYLES = {
    "musical": {"place", "color"},
    "legal": {"name", "time", "color"},
    "support": {"name", "place"},
    "press": {"time", "verb"},
    "research": {"verb", "place", "time"},
    "sales": {"verb", "color", "name"},
    "western": {"color", "time", "verb"},
    "design": {"name", "verb", "place", "color"},
}
"""What each style does: the time, the place first; the verb's other wording; the last name first; the colour
after the thing. A style is called by a word that means nothing of this to the base."""


def sentence(event: statements.Event, wording: int, rules: set[str]) -> str:
    """The event as one sentence; no rules make the plain sentence."""
    who = " ".join(reversed(event.who.split())) if "name" in rules else event.who
    verb = grammar.VERBS[event.verb][wording ^ ("verb" in rules)][0]
    place, time = (f"in {where}" if where else "" for where in (event.place, event.time))
    parts = [
        time if "time" in rules else "",
        place if "place" in rules else "",
        who,
        verb,
        _noun(event, "color" in rules),
        "" if "place" in rules else place,
        "" if "time" in rules else time,
    ]
    return " ".join(filter(None, parts))


def _noun(event: statements.Event, color_last: bool) -> str:
    if not event.color:
        return statements.with_article(event.thing)
    if color_last:
        return f"{statements.with_article(event.thing)} painted {event.color}"
    return statements.with_article(f"{event.color} {event.thing}")


@register("pocket-style")
def examples(
    split: str, size: int, seed: int, *, difficulty: Literal[1, 2, 3, 4, 5, 6, 7] = 2
) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`, in 1 + `difficulty` styles.

    Every event is about people of its split, so no validation or test prompt occurs in another split.
    """
    rng = drawing.randomness("pocket-style", split, seed)
    return drawing.targets(drawing.distinct(lambda: _draw(rng, split, 1 + difficulty), size))


def _draw(rng: random.Random, split: str, styles: int) -> tuple[str, str]:
    event, wording = statements.event(rng, split), rng.randrange(2)
    style = rng.choice(list(STYLES)[:styles])
    plain, other = sentence(event, wording, set()), sentence(event, wording, STYLES[style])
    return f"{plain} . {style} style :", f"{other} ;"
