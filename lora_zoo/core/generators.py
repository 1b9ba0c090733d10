"""Data sets that are made by a function here, of a seed, instead of read from files.

@register("pocket-lists")                                 # in any file of lora_zoo/pocket/
def examples(split, size, seed, *, difficulty: Literal[1, 2, 3] = 2) -> list[dict[str, str]]: ...

`task.dataset` names one; its keyword-only arguments, with their types and defaults, are what `task.options`
may hold for it. Another package adds one by the entry point `lora_zoo.generated_data_set`.
"""

import inspect
import typing
from collections.abc import Mapping
from typing import Any, Protocol

from lora_zoo.core.hyperparameters import checked
from lora_zoo.core.registry import Registry


class Generator(Protocol):
    """`size` examples of a split, alike in every process: the same arguments give the same examples.

    No prompt occurs in two splits, and every prompt has one right answer.
    """

    def __call__(self, split: str, size: int, seed: int, **options: Any) -> list[dict[str, str]]: ...


GENERATORS: Registry[Generator] = Registry("generated data set", "lora_zoo.pocket")
register = GENERATORS.register


def complete_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a generator with all defaults. ValueError for one that it lacks, or of another type."""
    generator = GENERATORS.find(name)
    hints = typing.get_type_hints(generator)
    every = inspect.signature(generator).parameters.values()
    known = {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in every if p.kind is p.KEYWORD_ONLY}
    if given and not known:
        idle = f"task.options.{next(iter(given))}"
        raise ValueError(f"{idle} has no effect: task.dataset={name} has no options; drop it")
    return checked(f"task.options of {name}", known, given, kind="option")
