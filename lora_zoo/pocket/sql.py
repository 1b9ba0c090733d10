"""pocket-sql: translate a question about a table into SQL; scored by exact match of the greedy answer."""

import random

from lora_zoo.core.generators import register
from lora_zoo.pocket import grammar, queries, tables


@register("pocket-sql")
def examples(split: str, size: int, seed: int) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `target`; no prompt occurs in two splits.

    Prompts with a name or title differ between splits because their entities do; the others belong to the
    split that their text hashes to.
    """
    if split not in grammar.SPLITS:
        raise ValueError(f"pocket-sql: split is {split!r}, must be one of {', '.join(grammar.SPLITS)}")
    rng = random.Random(f"pocket-sql {split} {seed}")
    found: dict[str, str] = {}
    while len(found) < size:
        named = _draw(rng, split)[2]
        prompt, target = _fitting(rng, split, named)
        found.setdefault(prompt, target)
    return [{"prompt": prompt, "target": target} for prompt, target in found.items()]


def _fitting(rng: random.Random, split: str, named: bool) -> tuple[str, str]:
    """A draw of the split; `named` is decided before, so that all splits have the same mixture."""
    while True:
        prompt, target, has_name = _draw(rng, split)
        if has_name == named and (named or grammar.split_of(prompt) == split):
            return prompt, target


def _draw(rng: random.Random, split: str) -> tuple[str, str, bool]:
    """Prompt, target, and whether a condition holds a name or title."""
    domain, columns = tables.table(rng)
    query = queries.query(rng, domain, columns, split)
    prompt = f"{tables.header(domain, columns)} question : {query.question(rng)} sql :"
    return prompt, query.sql(), query.names_entity
