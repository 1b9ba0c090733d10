"""pocket-sequence: the examples of several generated data sets, one after the other; scored by exact match.

The column `task` names the data set. A label is generated as a word, like any other target.
"""

from collections.abc import Sequence

from lora_zoo.core.generators import GENERATORS, complete_options, register


@register("pocket-sequence")
def examples(
    split: str, size: int, seed: int, *, tasks: Sequence[str] = ("pocket-lists",)
) -> list[dict[str, str]]:
    """`size` examples, as many of each of `tasks` (the first ones have one more where it does not divide).

    Each data set has its own defaults for its options. ValueError for one that does not exist or is named
    twice.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"pocket-sequence: tasks names data sets, each once; got {list(tasks)}")
    found: list[dict[str, str]] = []
    for number, task in enumerate(tasks):
        if task == "pocket-sequence":
            raise ValueError("pocket-sequence: tasks cannot name pocket-sequence itself")
        share = size // len(tasks) + (number < size % len(tasks))
        made = GENERATORS.find(task)(split, share, seed, **complete_options(task, {})) if share else []
        found += [
            {"prompt": row["prompt"], "target": row.get("target") or f"{row['label']} ;", "task": task}
            for row in made
        ]
    return found
