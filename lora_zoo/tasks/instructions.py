"""Instruction data: conversations through the tokenizer's chat template, the loss on the answers alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.errors import reason, unknown
from lora_zoo.tasks.causal_lm import CausalLM
from lora_zoo.tasks.conversations import COLUMNS, Message, check_format, conversation
from lora_zoo.tasks.cutting import IGNORED, Example, Fitted, fitted_target, least

_PROBE = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]


@TASK_TYPES.register("instructions")
class Instructions(CausalLM):
    """A decoder answers in conversations of one turn or several, which its chat template writes.

    The loss is on each answer and the token that ends it, as in TRL's `assistant_only_loss`; what a template
    writes after that token (a line break, which TRL's own templates count in) has none. The last answer of a
    conversation is the one that is judged. The data are found by their columns: see `conversations`.
    """

    sources = COLUMNS

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        if task.stop or task.template != "{prompt}":
            key = "stop" if task.stop else "template"
            raise ValueError(
                f"task.{key} has no effect on type=instructions, whose chat template says it: drop it, or "
                "give task.chat_template=FILE"
            )
        super().__init__(task, tokenizer, splits)

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """A column `prompt` with all messages before the last answer, as JSON, and `target` with its text."""
        made = {name: _by_answer(task, f"task {task.name}, {name}", data) for name, data in splits.items()}
        return replace(task, columns={}), made

    def fitted(self, example: Example) -> Fitted:
        messages = [*json.loads(example["prompt"]), _answer(example["target"])]
        text = self._written(messages)
        found = dict(
            self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        )
        ids, offsets = found["input_ids"], found["offset_mapping"]
        spans = self._answers(messages, text)
        labels = [
            token if any(start < b and a < end for start, end in spans) else IGNORED
            for token, (a, b) in zip(ids, offsets, strict=True)
        ]
        first = next(n for n, (_, b) in enumerate(offsets) if b > spans[-1][0])
        last = max(n for n, label in enumerate(labels) if label != IGNORED) + 1
        body = ids[first : last - len(self.end)]
        target, short = fitted_target(body, self.end, self.task.max_length - least(self.tokenizer))
        room = self.task.max_length - len(target)
        cut = max(first - room, 0)
        ids, labels = ids[cut:first] + target, labels[cut:first] + target
        inputs = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
        return Fitted(inputs, short or cut > 0)

    def fitted_input(self, example: Example) -> Fitted:
        text = self._written(json.loads(example["prompt"]), asks=True)
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        kept = ids[-self.task.max_length :]
        return Fitted({"input_ids": kept, "attention_mask": [1] * len(kept)}, len(kept) < len(ids))

    def _stop(self) -> str:
        """The token that ends an answer in the chat template. ValueError where there is none."""
        where = f"task {self.task.name}: the chat template"
        text = self._written(_PROBE)
        after = text.rpartition(_PROBE[-1]["content"])[2]
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        end = next((token for token in ids if token in special), None)
        if end is None:
            raise ValueError(
                f"{where} writes {after!r} after an answer, no token that ends it, so that a model would "
                "never learn to stop: write {{ eos_token }} there"
            )
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(f"{where} needs a tokenizer that tells where its tokens lie (a fast one)")
        return str(self.tokenizer.convert_ids_to_tokens(end))

    def _answers(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """The places in the text, in characters, at which each answer begins and its end is over."""
        spans: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._written(messages[:number], asks=True)
                content = text.find(message["content"].strip(), len(before))
                after = max(content + len(message["content"].strip()), len(before))
                end = text.find(self.stop, after)
                if not text.startswith(before) or content < 0 or end < 0:
                    raise ValueError(
                        f"task {self.task.name}: the chat template rewrites what was said before, so that "
                        f"nobody knows where in {text[:80]!r}… answer {len(spans)} stands; give one that "
                        "only appends, task.chat_template=FILE"
                    )
                spans.append((len(before), end + len(self.stop)))
        return spans

    def _written(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """The conversation as the chat template writes it; where it `asks`, up to the answer."""
        if not (template := self.task.chat_template or self.tokenizer.chat_template):
            raise ValueError(
                f"task {self.task.name}: the model's tokenizer has no chat template; give a file with one, "
                "task.chat_template=FILE.jinja"
            )
        try:
            written = self.tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:  # a template is code, which raises what it pleases
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"task {self.task.name}: the chat template cannot write a conversation of {roles}: "
                f"{reason(error)}"
            ) from error
        return str(written)


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _by_answer(task: Task, where: str, data: Any) -> Any:
    from datasets import Dataset

    for name, column in task.columns.items():
        if name not in (*COLUMNS, task.groups, "task"):
            raise ValueError(f"{where}: " + unknown("name in task.columns", name, COLUMNS))
        if column not in data.column_names:
            raise ValueError(f"{where}: " + unknown("column", column, data.column_names))
    named = data.rename_columns({old: new for new, old in task.columns.items() if old != new})
    check_format(named.column_names, where)
    made: dict[str, list[Any]] = {"prompt": [], "target": []}
    for number, row in enumerate(named):
        try:
            *before, last = conversation(row)
        except ValueError as error:
            raise ValueError(f"{where}: example {number}: {error}") from error
        made["prompt"].append(json.dumps(before, ensure_ascii=False))
        made["target"].append(last["content"])
    kept = {name: named[name] for name in (task.groups, "task") if name in named.column_names}
    return Dataset.from_dict(made | kept)
