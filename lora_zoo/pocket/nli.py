"""pocket-nli: does the hypothesis follow from the premise; scored by the most likely of three words.

pocket-nli-hard tells of several people in the premise, and asks of one of them.
"""

import random
from collections.abc import Callable
from typing import Literal

from lora_zoo.core.generators import register
from lora_zoo.pocket import drawing, inference

LABELS = inference.LABELS
HAPPENINGS = 0.65
"""Share of events; the rest are residences. Comparisons are left out: the base does not learn their order."""


@register("pocket-nli")
def examples(split: str, size: int, seed: int) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `label`, balanced in each block of three.

    Every prompt is about people of its split, so no validation or test prompt occurs in another split.
    """
    rng = drawing.randomness("pocket-nli", split, seed)
    return _balanced(rng, size, lambda label: _prompt(rng, split, label))


@register("pocket-nli-hard")
def hard_examples(
    split: str, size: int, seed: int, *, difficulty: Literal[1, 2, 3, 4] = 1
) -> list[dict[str, str]]:
    """The same with `difficulty` sentences about other people, in any order, in the premise."""
    rng = drawing.randomness("pocket-nli-hard", split, seed)
    return _balanced(rng, size, lambda label: _prompt(rng, split, label, others=difficulty))


def _balanced(rng: random.Random, size: int, prompt: Callable[[str], str]) -> list[dict[str, str]]:
    found: dict[str, str] = {}
    while len(found) < size:
        for label in rng.sample(LABELS, len(LABELS)):
            while (new := prompt(label)) in found:
                pass
            found[new] = label
    return [{"prompt": prompt, "label": label} for prompt, label in list(found.items())[:size]]


def _prompt(rng: random.Random, split: str, label: str, others: int = 0) -> str:
    premise = _premise(rng, split)
    hypothesis = premise.hypothesis(rng, label).sentence
    sentences = [premise.claim(rng).sentence]
    people = {premise.who}
    while len(sentences) <= others:
        other = _premise(rng, split)
        if other.who not in people:
            people.add(other.who)
            sentences.insert(rng.randint(0, len(sentences)), other.claim(rng).sentence)
    return f"premise : {' . '.join(sentences)} . hypothesis : {hypothesis} . label :"


def _premise(rng: random.Random, split: str) -> inference.Happening | inference.Residence:
    return (inference.happening if rng.random() < HAPPENINGS else inference.residence)(rng, split)
