"""Generation by a causal language model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.tasks.base import Example, Outcome, TaskType, continuation, continued, grouped, on_device


@TASK_TYPES.register("causal_lm")
class CausalLM(TaskType):
    """A decoder continues the prompt; the loss is on the target's tokens alone."""

    columns = ("prompt", "target")
    auto_class = "AutoModelForCausalLM"

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        end = task.stop or tokenizer.eos_token
        if not end:
            raise ValueError(f"task {task.name}: the tokenizer has no end-of-sequence token; give task.stop")
        ids = tokenizer(end, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"task {task.name}: the tokenizer has no token for task.stop={end!r}")
        self.end, self.end_id = end, ids[-1]

    def made_up(self) -> tuple[list[Any], list[Any]]:
        texts = ["a made-up answer", "another one"]
        return texts, [[text] for text in texts] if self.task.group_references else texts

    def ended(self, target: str) -> str:
        target = target.strip()
        return target if target.endswith(self.end) else f"{target} {self.end}"

    def encode(self, example: Example) -> Example:
        prompt = self._prompt_ids(example)
        target = continuation(self.tokenizer, self.ended(example["target"]))
        return continued(prompt, target, self.task.max_length)

    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        return super().outcomes(model, grouped(data) if self.task.group_references else data)

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        texts = self._texts(model, rows)
        return [self._judged(text, row["target"]) for text, row in zip(texts, rows, strict=True)]

    def _judged(self, text: str, target: str | list[str]) -> Outcome:
        references = [self._clean(t) for t in ([target] if isinstance(target, str) else target)]
        reference = references[0] if isinstance(target, str) else references
        return {"prediction": text, "reference": reference, "score": float(text in references)}

    def _clean(self, text: str) -> str:
        return " ".join(text.strip().removesuffix(self.end).split())

    def _texts(self, model: nn.Module, rows: list[Example]) -> list[str]:
        """Generated text after each prompt; prompts are padded on the left, so that all end together."""
        prompts = [self._prompt_ids(row) for row in rows]
        width = max(map(len, prompts))
        ids = torch.tensor([[self.tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = self._generate(model, {"input_ids": ids, "attention_mask": mask})
        return self._decoded(out[:, width:])

    def _generate(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return model.generate(  # type: ignore[operator]
            **on_device(inputs, model),
            do_sample=False,
            max_new_tokens=self.task.max_new_tokens,
            num_beams=self.task.num_beams,
            eos_token_id=self.end_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def _decoded(self, ids: Tensor) -> list[str]:
        kept = [row[: row.index(self.end_id)] if self.end_id in row else row for row in ids.tolist()]
        return [self._clean(text) for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)]
