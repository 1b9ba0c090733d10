"""Generation by an encoder-decoder."""

from torch import nn

from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import Example
from lora_zoo.tasks.causal_lm import CausalLM


@TASK_TYPES.register("seq2seq")
class Seq2Seq(CausalLM):
    """An encoder reads the prompt, a decoder writes the target."""

    auto_class = "AutoModelForSeq2SeqLM"

    def encode(self, example: Example) -> Example:
        limit, ids = self.task.max_length, self._prompt_ids(example)
        target = self.tokenizer(text_target=example["target"], truncation=True, max_length=limit)["input_ids"]
        ended = target if target[-1:] == [self.end_id] else [*target[: limit - 1], self.end_id]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ended}

    def _texts(self, model: nn.Module, rows: list[Example]) -> list[str]:
        batch = self.collate(
            [{"input_ids": i, "attention_mask": [1] * len(i)} for i in map(self._prompt_ids, rows)]
        )
        return self._decoded(self._generate(model, batch)[:, 1:])
