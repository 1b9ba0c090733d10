"""Plain language modelling: a decoder predicts each token of a text."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import Outcome, TaskType, on_device
from lora_zoo.tasks.cutting import Example, Fitted
from lora_zoo.tasks.likelihood import of_targets


@TASK_TYPES.register("language_modelling")
class LanguageModelling(TaskType):
    """A split is one stream of tokens, in blocks of `task.max_length`; what is left over is dropped.

    The loss is on every token but a block's first, which nothing precedes. A row of the data that ends in a
    line break, as all of a text file do, goes on in the next one; any other is a document, and the
    end-of-sequence token follows it. No other special tokens are added. An outcome's prediction is the mean
    nll of a block's tokens (nats), its reference their number, its score the negative of the first.
    """

    columns = ("text",)
    auto_class = "AutoModelForCausalLM"

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """Rows that hold more than white space, each with its line breaks and those of the empty ones after.

        Validation that there is no file of is the end of train: the rest stays one text.
        """
        from datasets import Dataset

        column = task.columns.get("text", "text")
        if any(column not in data.column_names for data in splits.values()):
            return task, splits  # which is said where columns are looked up
        ended = "\n" if task.dataset == "text" else ""
        rows = {name: _joined(data[column], ended) for name, data in splits.items()}
        if "validation" not in rows and "train" in rows and not task.by_heart:
            whole = rows["train"]
            held = math.ceil(task.validation_fraction * len(whole))
            if held >= len(whole):
                raise ValueError(
                    f"task {task.name}: of train, {len(whole)} rows long, nothing can be held out; give a "
                    "validation file"
                )
            rows |= {"train": whole[: len(whole) - held], "validation": whole[len(whole) - held :]}
        made = {name: Dataset.from_dict({"text": texts}) for name, texts in rows.items()}
        return replace(task, columns={"text": "text"}), made

    @classmethod
    def asks(cls, task: Task, example: Example) -> str | tuple[str, ...]:
        return tuple(example["input_ids"]) if "input_ids" in example else str(example["text"])

    def divided(self, split: str, data: Any) -> Any:
        """The blocks of a split; one shorter block of a text that fills none."""
        from datasets import Dataset

        read = self.tokenizer(list(data["text"]), add_special_tokens=False, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        if end is None and not all(text.endswith("\n") for text in data["text"]):
            raise ValueError(
                f"task {self.task.name}: the tokenizer has no token that ends a document; end each "
                "in a line break"
            )
        rows = zip(data["text"], read, strict=True)
        stream = list(chain.from_iterable(ids if text.endswith("\n") else [*ids, end] for text, ids in rows))
        size = min(self.task.max_length, len(stream))
        if size < 2:
            raise ValueError(
                f"task {self.task.name}, {split}: a text of {len(stream)} tokens predicts nothing"
            )
        blocks = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
        return Dataset.from_dict({"input_ids": blocks, "item": list(range(len(blocks)))})

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return [1.0, 2.0], [3.0, 4.0]

    def fitted(self, example: Example) -> Fitted:
        ids = list(example["input_ids"])
        return Fitted({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}, False)

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        inputs = on_device(self.collate([self.encode(row) for row in rows]), model)
        labels_NL = inputs.pop("labels")[:, 1:]
        found = of_targets(model(**inputs).logits[:, :-1], labels_NL)
        means = [likelihood["nll"] / likelihood["tokens"] for likelihood in found]
        judged = zip(found, means, self.references(rows), strict=True)
        return [{"prediction": nll, "reference": size, "score": -nll} | own for own, nll, size in judged]

    def references(self, rows: list[Example]) -> list[float]:
        return [float(len(row["input_ids"]) - 1) for row in rows]

    def described(self, rows: list[Example]) -> dict[str, Any]:
        return {"blocks": len(rows)}


def _joined(texts: list[Any], ended: str) -> list[Any]:
    """The rows that hold more than white space; `ended` ends each, the empty ones at the row before them."""
    rows: list[Any] = []
    for text in texts:
        if rows and isinstance(text, str) and not text.strip():
            rows[-1] += text + ended
        elif text is None or not isinstance(text, str) or text.strip():
            rows.append(text + ended if isinstance(text, str) else text)
    return rows
