"""pocket-rewrite: turn a statement into its question, or its negation; scored by exact match."""

import random

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, grammar, statements

FORMS = {
    "score": "did {who} {base} {rest}",
    "record": "{who} did not {base} {rest}",
    "grade": "{who} {past} {rest}",
}
"""A question, a negation, the statement with the verb's other wording. A form is called by a word that means
nothing of this to the base."""


@register("pocket-rewrite")
def examples(split: str, size: int, seed: int) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`.

    Every event is about people of its split, so no validation or test prompt occurs in another split.
    """
    rng = drawing.randomness("pocket-rewrite", split, seed)
    return drawing.targets(drawing.distinct(lambda: _draw(rng, split), size))


def _draw(rng: random.Random, split: str) -> tuple[str, str]:
    event, wording, form = statements.event(rng, split), rng.randrange(2), rng.choice(list(FORMS))
    verbs = grammar.VERBS[event.verb]
    noun = statements.with_article(f"{event.color} {event.thing}".strip())
    rest = " ".join([noun, *(f"in {part}" for part in (event.place, event.time) if part)])
    past, base = verbs[1 - wording][0], verbs[wording][1]
    target = FORMS[form].format(who=event.who, past=past, base=base, rest=rest)
    return f"{event.who} {verbs[wording][0]} {rest} . {form} :", f"{target} ;"
