"""Draw examples whose prompts differ, and which stay in one split."""

import random
from collections.abc import Callable, Mapping

from lora_zoo.pocket import grammar

PATIENCE = 10_000
"""Draws in a row without a new prompt, after which none is left."""


def randomness(dataset: str, split: str, seed: int) -> random.Random:
    """Random numbers of one split, the same in every process. ValueError where there is no such split."""
    if split not in grammar.SPLITS:
        raise ValueError(f"{dataset}: split is {split!r}, must be one of {', '.join(grammar.SPLITS)}")
    return random.Random(f"{dataset} {split} {seed}")


def distinct(draw: Callable[[], tuple[str, str] | None], size: int) -> dict[str, str]:
    """`size` different prompts with their answers; a draw of another split is None.

    ValueError where there are fewer.
    """
    found: dict[str, str] = {}
    idle = 0
    while len(found) < size:
        before, drawn = len(found), draw()
        if drawn:
            found.setdefault(*drawn)
        idle = 0 if len(found) > before else idle + 1
        if idle > PATIENCE:
            raise ValueError(f"there are {before} different examples of {size}; give a smaller task.sizes")
    return found


def targets(found: Mapping[str, str]) -> list[dict[str, str]]:
    """The examples of a generating task."""
    return [{"prompt": prompt, "target": target} for prompt, target in found.items()]
