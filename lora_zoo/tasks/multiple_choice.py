"""Multiple choice: a decoder picks the likeliest of the label words."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import IGNORED, Example, Outcome, TaskType, continuation, continued, on_device
from lora_zoo.tasks.labels import label_set


@TASK_TYPES.register("multiple_choice")
class MultipleChoice(TaskType):
    """A decoder chooses among label words: the one whose tokens are likeliest after the prompt."""

    columns = ("prompt", "label")
    auto_class = "AutoModelForCausalLM"

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.labels = label_set(task, splits)
        self.words = [continuation(tokenizer, label) for label in self.labels]
        for label, word in zip(self.labels, self.words, strict=True):
            if not word:
                raise ValueError(f"task {task.name}: the tokenizer has no token for the label {label!r}")
            if self.words.count(word) > 1:
                raise ValueError(
                    f"task {task.name}: to the tokenizer the label {label!r} is like another one"
                )

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return list(range(len(self.labels))), list(range(len(self.labels)))

    def encode(self, example: Example) -> Example:
        return continued(self._prompt_ids(example), self.words[self.labels.index(str(example["label"]))])

    @torch.inference_mode()
    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        found = []
        for rows in self._batches(data):
            scores = torch.stack([self._likelihood(model, rows, word) for word in self.words], dim=1)
            for row, prediction in zip(rows, scores.argmax(dim=1).tolist(), strict=True):
                reference = self.labels.index(str(row["label"]))
                outcome = {"prediction": prediction, "reference": reference}
                found.append({"item": row["item"]} | outcome | {"score": float(prediction == reference)})
        return found

    def _likelihood(self, model: nn.Module, rows: list[Example], word: list[int]) -> Tensor:
        """Log-probability of `word` after each row's prompt, (rows,)."""
        inputs = on_device(self.collate([continued(self._prompt_ids(row), word) for row in rows]), model)
        labels = inputs.pop("labels")[:, 1:]
        log_p = model(**inputs).logits[:, :-1].float().log_softmax(dim=-1)
        picked = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        return (picked * (labels != IGNORED)).sum(dim=1).cpu()
