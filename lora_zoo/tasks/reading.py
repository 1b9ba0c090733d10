"""Account for how a split was read: what it holds, what of it was cut, and what it needs of a model."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from lora_zoo.tasks.base import TaskType
from lora_zoo.tasks.cutting import Example, Fitted
from lora_zoo.tasks.generating import before_end

MOST_CLASSES = 6
"""Classes that a line names one by one."""


class Reading(NamedTuple):
    """One split: facts for the record, and the most that it needs of a model."""

    about: dict[str, Any]
    token: int
    """The greatest token."""
    read: int
    """Tokens of the longest input."""
    generated: int
    """Tokens that the model may write after it."""
    written: int
    """Tokens of the longest target."""


def read_train(kind: TaskType, rows: Sequence[Example], fitted: Sequence[Fitted]) -> Reading:
    """The train split. ValueError for a target without its end, which the model would never learn."""
    targets = [f.inputs["labels"] for f in fitted] if kind.end else []
    size = len(kind.end)
    for row, target in zip(rows, targets, strict=bool(targets)):
        if tuple(target[-size:]) != kind.end:
            raise ValueError(
                f"task {kind.task.name}, train: the target of example {row['item']} lost its end, "
                f"task.stop={kind.task.stop}; give a greater task.max_length"
            )
    within = sum(len(before_end(target, kind.end)) < len(target) - size for target in targets)
    about = {"stop_within": within} if within else {}
    return _reading(kind, rows, fitted, kind.described(list(rows)) | about)


def read_judged(kind: TaskType, data: Any, in_train: set[Any]) -> Reading:
    """A split on which the model will be judged; `in_train` is what the train split asks."""
    rows = kind.items(data)
    fitted = [kind.fitted_input(row) for row in rows]
    again = sum(kind.asks(kind.task, row) in in_train for row in rows)
    known = "by_heart" if kind.task.by_heart else "also_in_train"
    about = kind.described(rows) | ({known: again} if again else {})
    about |= {"items": len(rows)} if len(rows) < len(data) else {}
    return _reading(kind, rows, fitted, about, kind.generated)


def _reading(
    kind: TaskType,
    rows: Sequence[Example],
    fitted: Sequence[Fitted],
    about: Mapping[str, Any],
    generated: int = 0,
) -> Reading:
    inputs = [f.inputs for f in fitted]
    if not all("input_ids" in i for i in inputs):  # of images
        return Reading({**_information(rows), **about}, 0, 0, 0, 0)
    lengths = [len(i["input_ids"]) for i in inputs]
    if not all(lengths):
        item = rows[lengths.index(0)]["item"]
        raise ValueError(f"task {kind.task.name}: to the tokenizer the input of example {item} is empty")
    labels = [i["labels"] for i in inputs if isinstance(i.get("labels"), list)]
    tokens = {"least": min(lengths), "median": median(lengths), "most": max(lengths)}
    cut = sum(f.cut for f in fitted)
    alike = len(inputs) > 1 and all(i["input_ids"] == inputs[0]["input_ids"] for i in inputs)
    about = {**_information(rows), **about} | ({"alike": True} if alike else {})
    return Reading(
        {"tokens": tokens, **about, "cut": cut},
        max(*(max(i["input_ids"]) for i in inputs), *(max(label) for label in labels), 0),
        max(lengths),
        generated,
        max(map(len, labels), default=0),
    )


def _information(rows: Sequence[Example]) -> dict[str, float]:
    """The bits that all answers hold together, where the data say it of each."""
    told = [row.get("information") for row in rows]
    numbers = [bits for bits in told if isinstance(bits, float)]
    return {"information": math.fsum(numbers)} if len(numbers) == len(told) else {}


def in_words(split: str, size: int, about: Mapping[str, Any]) -> str:
    """The account of one split, as a part of one line."""
    tokens = about.get("tokens")
    parts = [f"{tokens['least']} to {tokens['most']} tokens"] if tokens else []
    if classes := about.get("classes"):
        parts.append(_classes(classes))
    if labels := about.get("labels"):
        parts.append(f"labels {labels['least']:.4g} to {labels['most']:.4g}")
    if "blocks" in about:
        parts.append(f"{about['blocks']:,} blocks")
    if "items" in about:
        parts.append(f"{about['items']:,} items")
    if "information" in about:
        parts.append(f"{about['information']:,.0f} bits")
    words = {"cut": "cut", "left_out": "left out by task.sizes", "drawn": "drawn at random"}
    words |= {"also_in_train": "also in train", "by_heart": "learned by heart"}
    parts += [f"{about[key]:,} {text}" for key, text in words.items() if about.get(key)]
    return f"{split} {size:,} ({', '.join(parts)})"


def _classes(classes: Mapping[str, int]) -> str:
    if len(classes) > MOST_CLASSES:
        return f"{len(classes)} classes of {min(classes.values()):,} to {max(classes.values()):,}"
    return " ".join(f"{name}:{count:,}" for name, count in classes.items())


def untaught(read: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on each class, by the account of all splits, of which train has no example."""
    train = read["train"].get("classes", {})
    return [
        f"{split} holds {count:,} examples of the class {name}, and train none"
        for split, about in read.items()
        for name, count in about.get("classes", {}).items()
        if count and not train.get(name)
    ]


def findings(split: str, about: Mapping[str, Any], size: int) -> list[str]:
    """Sentences on a split that a reader of the numbers has to know."""
    present = [name for name, count in about.get("classes", {}).items() if count]
    labels = about.get("labels", {})
    found = []
    if len(present) == 1 or (labels and labels["least"] == labels["most"]):
        what = present[0] if present else f"{labels['least']:.6g}"
        found.append(f"{split} holds one label alone, {what}: it tells no two models apart")
    if about.get("alike"):
        found.append(f"to the tokenizer all inputs of {split} are the same: it may not be this model's")
    if about.get("cut"):
        found.append(f"{about['cut']} of {size} examples of {split} were cut to task.max_length")
    if about.get("stop_within"):
        found.append(f"{about['stop_within']} targets of {split} hold task.stop before their end")
    return found
