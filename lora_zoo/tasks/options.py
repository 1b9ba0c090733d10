"""Multiple choice among options that each example brings: a decoder picks the likeliest."""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.errors import unknown
from lora_zoo.tasks.base import Outcome, TaskType, check_finite, on_device
from lora_zoo.tasks.cutting import Example, Fitted, continuation, continued
from lora_zoo.tasks.likelihood import of_class, of_targets

HIDDEN = ("", None, -1, "-1")
"""Labels of a split whose labels are not published."""


@TASK_TYPES.register("options")
class OwnOptions(TaskType):
    """A decoder chooses the option whose tokens are together the likeliest after the prompt.

    The loss is on the right option's tokens. nll is of the right option among an example's options, whose
    probabilities are scaled to add up to 1. Predictions and references are options' numbers, from 0 on.

    The options are a list in one column, two lists {text, label} as in ARC, or a column each (`task.columns.
    option1`, …); a label is an option's key, text, letter or number, counted from 0 or, where one of all
    splits is the number of its options, from 1.
    """

    columns = ("prompt", "options", "label")
    sources = ("options",)
    auto_class = "AutoModelForCausalLM"

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """A column `options` with their texts, as JSON, and `label` with the right one's number, as text."""
        names, label = _columns(task)
        for name, data in splits.items():
            for column in (*names, label, task.columns.get("prompt", "prompt")):
                if column not in data.column_names:
                    raise ValueError(
                        f"task {task.name}, {name}: {unknown('column', column, data.column_names)}; "
                        "task.columns.{prompt, options or option1 and so on, label} names them"
                    )
        first = _first(task, splits)
        made = {name: _read(task, f"task {task.name}, {name}", data, first) for name, data in splits.items()}
        taken = {name: column for name, column in task.columns.items() if not name.startswith("option")}
        return replace(task, columns=taken | {"options": "options", "label": "label"} if taken else {}), made

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return [0, 1], [0, 1]

    def fitted(self, example: Example) -> Fitted:
        tokens = self._tokens(example)
        return self._continued(example, tokens[int(example["label"])], max(map(len, tokens)))

    def fitted_input(self, example: Example) -> Fitted:
        longest = max(self._tokens(example), key=len)
        return self._continued(example, longest, len(longest))

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        tokens = [self._tokens(row) for row in rows]
        examples = [
            self._continued(row, one, max(map(len, own))).inputs
            for row, own in zip(rows, tokens, strict=True)
            for one in own
        ]
        size = self.task.eval_batch_size
        batches = [self.collate(examples[i : i + size]) for i in range(0, len(examples), size)]
        nll_T = check_finite(torch.tensor([nll for batch in batches for nll in _nll(model, batch)]).double())
        ends = pairwise(accumulate(map(len, tokens), initial=0))
        return [_judged(-nll_T[a:b], int(row["label"])) for (a, b), row in zip(ends, rows, strict=True)]

    def references(self, rows: list[Example]) -> list[int]:
        return [int(row["label"]) for row in rows]

    def _tokens(self, example: Example) -> list[list[int]]:
        options = json.loads(example["options"])
        tokens = [continuation(self.tokenizer, text) for text in options]
        if [] in tokens:
            raise ValueError(
                f"task {self.task.name}: to the tokenizer the option {options[tokens.index([])]!r} of "
                f"example {example['item']} is empty; give options that it can read"
            )
        return tokens

    def _continued(self, example: Example, option: list[int], longest: int) -> Fitted:
        """The prompt, which is the same before every option, and an option."""
        limit = self.task.max_length
        return continued(self.tokenizer, self._prompt(example), option, (), limit=limit, reserved=longest)


def _nll(model: nn.Module, batch: dict[str, Any]) -> list[float]:
    """-log p of each row's target after its prompt."""
    inputs = on_device(batch, model)
    labels = inputs.pop("labels")
    return [one["nll"] for one in of_targets(model(**inputs).logits[:, :-1], labels[:, 1:])]


def _judged(scores_C: torch.Tensor, reference: int) -> Outcome:
    prediction = int(scores_C.argmax())
    found = {"prediction": prediction, "reference": reference, "score": float(prediction == reference)}
    return found | of_class(scores_C, reference)


def _read(task: Task, where: str, data: Any, first: int) -> Any:
    """The split with its options as JSON and its labels as numbers. ValueError for a label of none."""
    from datasets import Value

    names, label = _columns(task)
    texts: list[str] = []
    numbers: list[str | None] = []
    for number, row in enumerate(data):
        try:
            options, keys = _options([row[name] for name in names])
            numbers.append(None if row[label] in HIDDEN else str(_number(row[label], options, keys, first)))
        except ValueError as error:
            raise ValueError(f"{where}: example {number}: {error}") from error
        texts.append(json.dumps(options, ensure_ascii=False))
    data = data.remove_columns([name for name in ("options", "label") if name in data.column_names])
    text = Value("string")
    return data.add_column("options", texts, feature=text).add_column("label", numbers, feature=text)


def _columns(task: Task) -> tuple[list[str], str]:
    """The column of the options, or those of each, and that of the label."""
    several = sorted(name for name in task.columns if name.startswith("option") and name != "options")
    one = [task.columns.get("options", "options")]
    return [task.columns[name] for name in several] or one, task.columns.get("label", "label")


def _first(task: Task, splits: Mapping[str, Any]) -> int:
    """The number of the first option as the labels of all splits count: 0, or 1 where one is the last's."""
    names, label = _columns(task)
    for data in splits.values():
        for row in data.select_columns([*names, label]):
            options, keys = _options([row[name] for name in names])
            if not keys and str(row[label]) == str(len(options)):
                return 1
    return 0


def _options(cells: list[Any]) -> tuple[list[str], list[str]]:
    """The texts of the options and the words by which a label may name them; ARC's are in two lists."""
    given, keys = cells if len(cells) > 1 else cells[0], list[str]()
    if isinstance(given, Mapping) and {"text", "label"} <= given.keys():
        given, keys = given["text"], [str(key) for key in given["label"]]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(f"its options are {given!r}, not a list of texts")
    options = [str(option) for option in given]
    if len(options) < 2 or not all(option.strip() for option in options):
        raise ValueError(f"its options are {options}; it needs two or more, none of them empty")
    return options, keys


def _number(label: Any, options: Sequence[str], keys: Sequence[str], first: int) -> int:
    """The place of the right option: by its key, its text, its letter or its number."""
    places = [str(place) for place in range(first, first + len(options))]
    for known in (keys or places, options, string.ascii_uppercase[: len(options)]):
        if str(label).strip() in known:
            return list(known).index(str(label).strip())
    raise ValueError(unknown("label", str(label), keys or places))
