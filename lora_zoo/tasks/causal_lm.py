"""Generation by a causal language model."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.train_eval import without_gradients
from lora_zoo.tasks.base import Outcome, TaskType, on_device
from lora_zoo.tasks.cutting import Example, Fitted, continuation, continued, fitted
from lora_zoo.tasks.generating import AllNumbers, EndsWith, before_end
from lora_zoo.tasks.likelihood import LOGITS, mean, of_targets


@TASK_TYPES.register("causal_lm")
class CausalLM(TaskType):
    """A decoder continues the prompt; the loss is on the target's tokens alone, of which the last ends it."""

    columns = ("prompt", "target")
    auto_class = "AutoModelForCausalLM"

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        self.task, self.tokenizer, self.generated = task, tokenizer, task.max_new_tokens
        self.has_likelihood = task.likelihood
        self.stop = self._stop()
        self.end = self._end_tokens(self.stop)
        super().__init__(task, tokenizer, splits)
        for split, data in splits.items():
            empty = next((n for n, text in enumerate(data["target"]) if not self._body(text)), None)
            if empty is not None:
                raise ValueError(f"task {task.name}, {split}: the target of example {empty} is its end alone")

    def _stop(self) -> str:
        """The text that ends an answer. ValueError where there is none."""
        if not (self.task.stop or self.tokenizer.eos_token):
            raise ValueError(
                f"task {self.task.name}: the tokenizer has no end-of-sequence token; give task.stop"
            )
        return str(self.task.stop or self.tokenizer.eos_token)

    def _end_tokens(self, stop: str) -> tuple[int, ...]:
        """The end as it stands in a target: one token of its own name, or as text goes on."""
        tokenizer = self.tokenizer
        if stop in tokenizer.get_added_vocab() or stop == tokenizer.eos_token:
            return (tokenizer.convert_tokens_to_ids(stop),)
        ids = continuation(tokenizer, stop)
        if not ids or tokenizer.unk_token_id in ids:
            raise ValueError(f"task {self.task.name}: the tokenizer has no token for task.stop={stop!r}")
        return tuple(ids)

    def made_up(self) -> tuple[list[Any], list[Any]]:
        texts = ["a made-up answer, 1", "another one, 2"]
        return texts, [[text] for text in texts] if self.task.group_references else texts

    def fitted(self, example: Example) -> Fitted:
        body = continuation(self.tokenizer, self._body(example["target"]))
        return continued(self.tokenizer, self._prompt(example), body, self.end, limit=self.task.max_length)

    def fitted_input(self, example: Example) -> Fitted:
        return fitted(self.tokenizer, self._prompt(example), room=self.task.max_length)

    def items(self, data: Any) -> list[Example]:
        """The examples, or one for all that ask the same, with their targets as a list."""
        if not self.task.group_references:
            return list(data)
        groups: dict[Any, Example] = {}
        for row in data:
            group = groups.setdefault(self.asks(self.task, row), row | {"target": []})
            group["target"].append(row["target"])
        return list(groups.values())

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        judged = zip(self._texts(model, rows), self.references(rows), strict=True)
        likelihoods = self.likelihoods(model, rows) if self.has_likelihood else [{}] * len(rows)
        return [self._judged(*one) | nll for one, nll in zip(judged, likelihoods, strict=True)]

    def _judged(self, text: str, reference: str | list[str]) -> Outcome:
        right = text == reference if isinstance(reference, str) else text in reference
        return {"prediction": text, "reference": reference, "score": float(right)}

    @without_gradients()
    def likelihoods(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        """nll and tokens of each row's reference after its prompt, both encoded as for training.

        Of several references, their means. ValueError for NaN or inf.
        """
        targets = [row["target"] if self.task.group_references else [row["target"]] for row in rows]
        pairs = zip(rows, targets, strict=True)
        examples = [self.encode(row | {"target": target}) for row, own in pairs for target in own]
        longest = max(len(example["labels"]) for example in examples)
        most = LOGITS // (longest * len(self.tokenizer))
        size = min(max(most, 1), self.task.eval_batch_size)
        batches = [self.collate(examples[i : i + size]) for i in range(0, len(examples), size)]
        found = iter([nll for batch in batches for nll in of_targets(*self._forced(model, batch))])
        return [mean(list(islice(found, len(own)))) for own in targets]

    def _forced(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, L, V) of each next token, and the labels (N, L) that they are of."""
        inputs = on_device(batch, model)
        labels = inputs.pop("labels")
        return model(**inputs).logits[:, :-1], labels[:, 1:]

    def references(self, rows: list[Example]) -> list[Any]:
        targets = [row["target"] for row in rows]
        return [self._clean(t) if isinstance(t, str) else [self._clean(one) for one in t] for t in targets]

    def _body(self, text: str) -> str:
        """A target without its end."""
        return text.strip().removesuffix(self.stop).strip()

    def _clean(self, text: str) -> str:
        return " ".join(self._body(text).split())

    def _texts(self, model: nn.Module, rows: list[Example]) -> list[str]:
        """Generated text after each prompt; prompts are padded on the left, so that all end together."""
        prompts = [self.fitted_input(row).inputs["input_ids"] for row in rows]
        width = max(map(len, prompts))
        ids = torch.tensor([[self.tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        return self._generated(model, {"input_ids": ids, "attention_mask": mask}, start=width)

    def _generated(self, model: nn.Module, inputs: dict[str, Tensor], start: int) -> list[str]:
        """The texts that the model writes from position `start` on, up to the end. ValueError for NaN."""
        one, numbers = len(self.end) == 1, AllNumbers()
        ids = model.generate(  # type: ignore[operator]
            **on_device(inputs, model),
            do_sample=False,
            max_new_tokens=self.task.max_new_tokens,
            num_beams=self.task.num_beams,
            eos_token_id=self.end[0] if one else self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=[numbers],
            stopping_criteria=[] if one else [EndsWith(self.end, start)],
        )
        numbers.check()
        kept = [before_end(row, self.end) for row in ids[:, start:].tolist()]
        return [self._clean(text) for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)]
