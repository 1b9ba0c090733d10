"""Kinds of task: how examples become tensors, which model they need, and what a model answers.

Every kind gives `outcomes`: one record per example (item, prediction, reference, score), so that two variants
can be compared on the same items; a metric is computed from the same records.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lora_zoo.configuration.settings import Task
from lora_zoo.tasks.splits import label_set, numbers

Example = dict[str, Any]
Outcome = dict[str, Any]
IGNORED = -100


class Kind(ABC):
    """One task with the tokenizer that it is read by."""

    auto_class: ClassVar[str]
    """The transformers class that loads the model."""

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        self.task, self.tokenizer = task, tokenizer

    @abstractmethod
    def made_up(self) -> tuple[list[Any], list[Any]]:
        """Predictions and references as `outcomes` gives them, to try a metric on."""

    def head(self) -> dict[str, Any]:
        """What the model's configuration must say of its head."""
        return {}

    @classmethod
    def outlined_head(cls, task: Task) -> dict[str, Any]:
        """The same as far as the task's own configuration tells it, without any data."""
        return {}

    @abstractmethod
    def encode(self, example: Example) -> Example:
        """Token ids and labels of one training example."""

    @abstractmethod
    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        """What `model` answers for each example of a split, in evaluation mode, without gradients."""

    def collate(self, batch: list[Example]) -> dict[str, Tensor]:
        """Pad on the right, labels with `IGNORED`."""
        pads = {"labels": IGNORED, "attention_mask": 0, "token_type_ids": 0}
        return {
            name: pad_sequence(
                [torch.tensor(example[name]) for example in batch],
                batch_first=True,
                padding_value=pads.get(name, self.tokenizer.pad_token_id),
            )
            if isinstance(batch[0][name], list)
            else torch.tensor([example[name] for example in batch])
            for name in batch[0]
        }

    def about(self) -> dict[str, Any]:
        """What a model that is made of a run must know of it, beside its head."""
        return {}

    def encoded(self, data: Any) -> list[Example]:
        """A split as training examples."""
        return [self.encode(example) for example in data]

    def _batches(self, data: Any) -> Iterator[list[Example]]:
        rows, size = list(data), self.task.eval_batch_size
        yield from (rows[i : i + size] for i in range(0, len(rows), size))

    def _prompt_ids(self, example: Example) -> list[int]:
        text = self.task.template.format(**example)
        return self.tokenizer(text, truncation=True, max_length=self.task.max_length)["input_ids"]


class Labelled(Kind, ABC):
    """Texts or pairs of texts, judged by a head on top of an encoder (or a decoder)."""

    auto_class = "AutoModelForSequenceClassification"

    def encode(self, example: Example) -> Example:
        pair = (example["text"], example["text_pair"]) if "text_pair" in example else (example["text"],)
        return dict(self.tokenizer(*pair, truncation=True, max_length=self.task.max_length)) | {
            "labels": self.target(example["label"])
        }

    @abstractmethod
    def target(self, label: Any) -> int | float: ...

    @abstractmethod
    def answer(self, logits: Tensor, label: Any) -> Outcome: ...

    @torch.inference_mode()
    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        found = []
        for rows in self._batches(data):
            inputs = self.collate([self.encode(row) for row in rows])
            inputs.pop("labels")
            logits = model(**on_device(inputs, model)).logits.float().cpu()
            found += [
                {"item": r["item"]} | self.answer(z, r["label"]) for r, z in zip(rows, logits, strict=True)
            ]
        return found


class Classification(Labelled):
    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.labels = label_set(task, splits)

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return list(range(len(self.labels))), list(range(len(self.labels)))

    def head(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}

    @classmethod
    def outlined_head(cls, task: Task) -> dict[str, Any]:
        return {"num_labels": len(task.labels)} if task.labels else {}

    def target(self, label: Any) -> int:
        return label if isinstance(label, int) and label not in self.labels else self.labels.index(str(label))

    def answer(self, logits: Tensor, label: Any) -> Outcome:
        prediction, reference = int(logits.argmax()), self.target(label)
        return {"prediction": prediction, "reference": reference, "score": float(prediction == reference)}


class Regression(Labelled):
    """The head learns labels standardised on the train split; answers are in the labels' own unit.

    Without it a head's small rate spends the run on finding the mean. `score` is the negative squared error.
    """

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        numbers(task, splits)
        labels = torch.tensor([float(label) for label in splits["train"]["label"]], dtype=torch.float64)
        self.mean, self.std = float(labels.mean()), float(labels.std()) or 1.0

    def made_up(self) -> tuple[list[Any], list[Any]]:
        return [1.0, 2.5, 4.0], [1.0, 2.0, 4.5]

    def about(self) -> dict[str, Any]:
        return {"standardised": {"mean": self.mean, "std": self.std}}

    def head(self) -> dict[str, Any]:
        return self.outlined_head(self.task)

    @classmethod
    def outlined_head(cls, task: Task) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def target(self, label: Any) -> float:
        return (float(label) - self.mean) / self.std

    def answer(self, logits: Tensor, label: Any) -> Outcome:
        prediction, reference = float(logits[0]) * self.std + self.mean, float(label)
        return {"prediction": prediction, "reference": reference, "score": -((prediction - reference) ** 2)}


class Choice(Kind):
    """A decoder chooses among label words: the one whose tokens are likeliest after the prompt."""

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


class Generation(Kind):
    """A decoder continues the prompt; the loss is on the target's tokens alone."""

    auto_class = "AutoModelForCausalLM"

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        end = task.terminator or tokenizer.eos_token
        if not end:
            raise ValueError(
                f"task {task.name}: the tokenizer has no end-of-sequence token; give task.terminator"
            )
        ids = tokenizer(end, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"task {task.name}: the tokenizer has no token for task.terminator={end!r}")
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

    @torch.inference_mode()
    def outcomes(self, model: nn.Module, data: Any) -> list[Outcome]:
        found = []
        for rows in self._batches(grouped(data) if self.task.group_references else data):
            for row, text in zip(rows, self._texts(model, rows), strict=True):
                found.append({"item": row["item"]} | self._judged(text, row["target"]))
        return found

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


class Seq2Seq(Generation):
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


KINDS: dict[str, type[Kind]] = {
    "classification": Classification,
    "regression": Regression,
    "choice": Choice,
    "generation": Generation,
    "seq2seq": Seq2Seq,
}


def continuation(tokenizer: Any, text: str) -> list[int]:
    """The tokens of `text` as it continues a prompt: a space before it, where the tokenizer keeps spaces."""
    return tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


def continued(prompt: list[int], target: list[int], limit: int | None = None) -> Example:
    """Prompt and target in one sequence, the prompt's labels ignored; too long a prompt loses its start."""
    if limit is not None and len(prompt) + len(target) > limit:
        prompt = prompt[-max(limit - len(target), 1) :]
    ids = (prompt + target)[:limit]
    labels = ([IGNORED] * len(prompt) + target)[:limit]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def grouped(data: Any) -> list[Example]:
    """One example per distinct prompt, with all its targets as a list."""
    groups: dict[str, Example] = {}
    for row in data:
        groups.setdefault(row["prompt"], row | {"target": []})["target"].append(row["target"])
    return list(groups.values())


def on_device(inputs: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in inputs.items()}
