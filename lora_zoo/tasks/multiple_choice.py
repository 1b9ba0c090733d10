"""Multiple choice: a decoder picks the likeliest of the label words."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import LabelledTask, Outcome, check_finite, on_device
from lora_zoo.tasks.cutting import IGNORED, Example, Fitted, continuation, continued, least


@TASK_TYPES.register("multiple_choice")
class MultipleChoice(LabelledTask):
    """A decoder chooses among label words: the one whose tokens are likeliest after the prompt.

    nll is of the right word among the label words, whose probabilities are scaled to add up to 1.
    """

    columns = ("prompt", "label")
    auto_class = "AutoModelForCausalLM"

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.words = [continuation(tokenizer, label) for label in self.labels]
        for label, word in zip(self.labels, self.words, strict=True):
            if not word or (tokenizer.unk_token_id in word and label != tokenizer.unk_token):
                raise ValueError(f"task {task.name}: the tokenizer has no token for the label {label!r}")
            if len(word) > task.max_length - least(tokenizer):
                raise ValueError(
                    f"task {task.name}: the label {label!r} has {len(word)} tokens, for which "
                    f"task.max_length={task.max_length} has no room"
                )
            if self.words.count(word) > 1:
                raise ValueError(
                    f"task {task.name}: to the tokenizer the label {label!r} is like another one"
                )

    def fitted(self, example: Example) -> Fitted:
        return self._continued(example, self.words[self.target(example["label"])])

    def _continued(self, example: Example, word: list[int]) -> Fitted:
        """The prompt, which is the same before every word, and the word."""
        limit, longest = self.task.max_length, max(map(len, self.words))
        return continued(self.tokenizer, self._prompt(example), word, (), limit=limit, reserved=longest)

    def fitted_input(self, example: Example) -> Fitted:
        return self._continued(example, max(self.words, key=len))

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        scores_NC = torch.stack([self._likelihood(model, rows, word) for word in self.words], dim=1)
        judged = zip(check_finite(scores_NC), rows, strict=True)
        return [self.judged(scores_C, row["label"]) for scores_C, row in judged]

    def _likelihood(self, model: nn.Module, rows: list[Example], word: list[int]) -> Tensor:
        """Log-probability of `word` after each row's prompt, (rows,)."""
        inputs = on_device(self.collate([self._continued(row, word).inputs for row in rows]), model)
        labels = inputs.pop("labels")[:, 1:]
        log_p = model(**inputs).logits[:, :-1].float().log_softmax(dim=-1)
        picked = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        return (picked * (labels != IGNORED)).sum(dim=1).cpu()
