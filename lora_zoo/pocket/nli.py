"""pocket-nli: does the hypothesis follow from the premise; scored by the most likely of three words."""

import random

from lora_zoo.core.generators import register
from lora_zoo.pocket import grammar, inference

LABELS = inference.LABELS
HAPPENINGS = 0.65
"""Share of events; the rest are residences. Comparisons are left out: the base does not learn their order."""


@register("pocket-nli")
def examples(split: str, size: int, seed: int) -> list[dict[str, str]]:
    """`size` different examples with `prompt` and `label`, balanced in each block of three.

    Every prompt is about people of its split, so no validation or test prompt occurs in another split.
    """
    if split not in grammar.SPLITS:
        raise ValueError(f"pocket-nli: split is {split!r}, must be one of {', '.join(grammar.SPLITS)}")
    rng = random.Random(f"pocket-nli {split} {seed}")
    found: dict[str, str] = {}
    while len(found) < size:
        for label in rng.sample(LABELS, len(LABELS)):
            found[_new_prompt(rng, split, label, found)] = label
    return [{"prompt": prompt, "label": label} for prompt, label in list(found.items())[:size]]


def _new_prompt(rng: random.Random, split: str, label: str, found: dict[str, str]) -> str:
    while True:
        family = inference.happening if rng.random() < HAPPENINGS else inference.residence
        premise = family(rng, split)
        hypothesis = premise.hypothesis(rng, label).sentence
        prompt = f"premise : {premise.claim(rng).sentence} . hypothesis : {hypothesis} . label :"
        if prompt not in found:
            return prompt
