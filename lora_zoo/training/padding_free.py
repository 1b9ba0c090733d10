"""The examples of a batch in one row, without padding, each seen by itself alone.

`padding_free=true` keeps the examples of each step. `packing=true` makes rows of whole examples first, and a
step takes some of these.

transformers tells them apart by `position_ids` that begin anew where no attention mask is given. A model
whose attention does not heed that would read on into the next example, so the two layouts are compared once.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from lora_zoo.config.schema import Settings
from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.inject import Injection
from lora_zoo.tasks.base import TaskType, on_device
from lora_zoo.tasks.cutting import IGNORED, Example

Collator = Callable[[list[Example]], dict[str, Any]]
COMPARED = 3
"""Examples in the pass that compares the layouts: with two, the second sees what it must not see once."""


class OneRow:
    """A collator (input_ids, labels, position_ids (1, T)): transformers' own, and no cache."""

    def __init__(self) -> None:
        self.flattening = DataCollatorWithFlattening(separator_id=IGNORED)

    def __call__(self, batch: list[Example]) -> dict[str, Any]:
        taken = ("input_ids", "labels")
        rows = self.flattening([{name: example[name] for name in taken} for example in batch])
        return {**rows, "use_cache": False}  # with one, transformers looks for no second example


def laid_out(
    settings: Settings, injection: Injection, kind: TaskType, examples: list[Example]
) -> tuple[list[Any], Callable[[list[Any]], dict[str, Any]]]:
    """The examples of the trainer's batches, or rows of several, and the collator of either.

    ValueError where a model or a variant would not keep the examples of a row apart.
    """
    if not (settings.padding_free or settings.packing):
        return examples, kind.collate
    collate = one_row(injection, kind, examples, "packing" if settings.packing else "padding_free")
    if not settings.packing:
        return examples, collate
    rows = filled(examples, kind.task.max_length)
    return rows, lambda batch: collate([*chain.from_iterable(batch)])


def filled(examples: Sequence[Example], room: int) -> list[list[Example]]:
    """Rows of whole examples, each of at most `room` tokens.

    The longest example first, each goes into the fullest row that has room for it (best-fit decreasing, as
    TRL's `packing_strategy="bfd"`).
    """
    rows: list[list[Example]] = []
    free: list[tuple[int, int]] = []  # room and number of each row, in order
    for example in sorted(examples, key=lambda example: -len(example["input_ids"])):
        size = len(example["input_ids"])
        at = bisect_left(free, (size, 0))
        left, number = free.pop(at) if at < len(free) else (room, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append(example)
        insort(free, (left - size, number))
    return rows


def one_row(
    injection: Injection, kind: TaskType, examples: Sequence[Example], key: str = "padding_free"
) -> Collator:
    """The collator of a run without padding. ValueError where that would be another training."""
    variant, asked = injection.variant, f"{key}=true"
    if kind.auto_class != "AutoModelForCausalLM":
        raise ValueError(f"{asked} is for decoders of text, and type={kind.task.type} has none; drop it")
    if variant.by_row:
        raise ValueError(
            f"{asked} puts several examples in a row, and {variant.name} {variant.by_row}; drop it"
        )
    if "task_ids" in examples[0]:
        raise ValueError(f"{asked} puts several examples in a row, which has one task; drop it")
    if len(examples) > 1:
        _check_layouts(injection, kind, examples[:COMPARED], asked)
    return OneRow()


@torch.no_grad()
def _check_layouts(injection: Injection, kind: TaskType, examples: Sequence[Example], asked: str) -> None:
    """ValueError where the frozen model gives examples in one row other logits than in rows of their own."""
    model = injection.model
    with in_mode(model, training=False), injection.disabled():
        found_V = _logits(model, OneRow()(list(examples)))[0]
        padded = kind.collate(list(examples))
        expected_V = _logits(model, padded)[padded["attention_mask"].bool()]
    bound = torch.finfo(found_V.dtype).eps ** 0.5 * float(expected_V.abs().max())
    if not (off := float((found_V - expected_V).abs().max())) <= bound:
        name = model.config.model_type  # type: ignore[union-attr]
        raise ValueError(
            f"{asked}: {name} does not keep examples of one row apart (its logits move by "
            f"{off:.2g} of {float(expected_V.abs().max()):.2g}); drop it"
        )


def _logits(model: Any, batch: dict[str, Any]) -> Tensor:
    """Logits (N, L, V) of a batch."""
    inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != "labels"}
    logits: Tensor = model(**on_device(inputs, model), use_cache=False).logits
    return logits


__all__ = ["OneRow", "filled", "laid_out", "one_row"]
