"""Multiple choice: a decoder picks the likeliest of the label words."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import IGNORED, Example, LabelledTask, Outcome, continuation, continued, on_device


@TASK_TYPES.register("multiple_choice")
class MultipleChoice(LabelledTask):
    """A decoder chooses among label words: the one whose tokens are likeliest after the prompt."""

    columns = ("prompt", "label")
    auto_class = "AutoModelForCausalLM"

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.words = [continuation(tokenizer, label) for label in self.labels]
        for label, word in zip(self.labels, self.words, strict=True):
            if not word:
                raise ValueError(f"task {task.name}: the tokenizer has no token for the label {label!r}")
            if self.words.count(word) > 1:
                raise ValueError(
                    f"task {task.name}: to the tokenizer the label {label!r} is like another one"
                )

    def encode(self, example: Example) -> Example:
        return continued(self._prompt_ids(example), self.words[self.target(example["label"])])

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        scores = torch.stack([self._likelihood(model, rows, word) for word in self.words], dim=1)
        chosen = scores.argmax(dim=1).tolist()
        return [self.judged(one, row["label"]) for one, row in zip(chosen, rows, strict=True)]

    def _likelihood(self, model: nn.Module, rows: list[Example], word: list[int]) -> Tensor:
        """Log-probability of `word` after each row's prompt, (rows,)."""
        inputs = on_device(self.collate([continued(self._prompt_ids(row), word) for row in rows]), model)
        labels = inputs.pop("labels")[:, 1:]
        log_p = model(**inputs).logits[:, :-1].float().log_softmax(dim=-1)
        picked = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        return (picked * (labels != IGNORED)).sum(dim=1).cpu()
