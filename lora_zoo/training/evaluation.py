"""Evaluate a run on its splits; check that inputs fit the embeddings."""

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.inject import Injection
from lora_zoo.runs.degenerate import answers
from lora_zoo.runs.record import Record
from lora_zoo.tasks.base import Example
from lora_zoo.training.resources import TaskData


class Evaluator:
    """Evaluates an adapted model on a task's splits, by the task's metrics."""

    def __init__(
        self,
        injection: Injection,
        data: TaskData,
        metrics: dict[str, Any],
        *,
        record: Record,
        eval_splits: list[str],
    ) -> None:
        self.injection, self.data, self.metrics = injection, data, metrics
        self.record, self.eval_splits = record, [s for s in eval_splits if s in data.splits]

    def evaluate(self, *, keep: bool) -> dict[str, dict[str, float]]:
        """Compute metrics by split; `keep` writes the outcome of every example to the run's folder."""
        return {split: self.evaluate_split(split, keep=keep) for split in self.eval_splits}

    def missing_views(self) -> dict[str, contextlib.AbstractContextManager[Any]]:
        """The views of the trained model that no process has judged on every split."""
        known, splits = self.record.content.get("views", {}), set(self.eval_splits)
        every = self.injection.hooks.views()
        return {name: view for name, view in every.items() if not splits <= set(known.get(name, {}))}

    def judge_views(self) -> None:
        """Record the metrics of each of them, one after the other, so that none is judged twice."""
        for name, view in self.missing_views().items():
            with view:
                values = self.evaluate(keep=False)
            self.record.update(views=self.record.content.get("views", {}) | {name: values})

    def evaluate_split(self, split: str, *, keep: bool = False) -> dict[str, float]:
        model = self.injection.model
        with in_mode(model, training=False):
            outcomes = self.data.kind.outcomes(model, self.data.splits[split])
        if keep:
            self.record.examples(split, outcomes)
        predictions = [o["prediction"] for o in outcomes]
        references = [o["reference"] for o in outcomes]
        if keep:
            self._tell_answers(split, predictions, references)
        return self._values(predictions, references)

    def _values(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        values: dict[str, float] = {}
        for metric in self.metrics.values():
            values |= metric.compute(predictions=predictions, references=references)
        return values

    def _tell_answers(self, split: str, predictions: list[Any], references: list[Any]) -> None:
        """Record how many answers differ, and what the commonest class alone would reach."""
        told, record = answers(predictions, references), self.record.content
        record_of = {"answers": record.get("answers", {}) | {split: told}}
        if told["common"] is not None:
            values = self._values([told["common"]] * len(references), references)
            record_of["majority"] = record.get("majority", {}) | {split: values}
        self.record.update(**record_of)


def check_inputs(model: nn.Module, data: Sequence[Example]) -> None:
    """ValueError for tokens and lengths for which the model has no embedding."""
    known = {name: m.num_embeddings for name, m in named_base_modules(model) if isinstance(m, nn.Embedding)}
    greatest = max(max(example["input_ids"]) for example in data)
    words = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if greatest >= words:
        raise ValueError(
            f"the tokenizer gives the token {greatest} and the model has {words}; they do not belong together"
        )
    longest = max(len(example["input_ids"]) for example in data)
    positions = [size for name, size in known.items() if "position" in name or name.endswith("wpe")]
    if positions and longest > min(positions):
        raise ValueError(
            f"an example has {longest} tokens and the model {min(positions)} positions; give a smaller "
            "task.max_length"
        )
