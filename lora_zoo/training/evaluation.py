"""Evaluate a run on its splits; check before training that the model and the metrics can take them."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from lora_zoo.core.routing import RoutingRecord, mean_load
from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.inject import Injection
from lora_zoo.metrics import check_values, reads, try_out
from lora_zoo.runs.degenerate import answers
from lora_zoo.runs.record import Record
from lora_zoo.tasks import likelihood
from lora_zoo.tasks.base import TaskType
from lora_zoo.tasks.judgeable import NotFinite
from lora_zoo.tasks.reading import Reading
from lora_zoo.training.resources import TaskData

TRIED = 200
"""Texts of a split on which a metric is tried before training: of 4,693 it would take seconds."""


class Evaluation(NamedTuple):
    """The metrics of each split, and the likelihood of its references, of splits that have one.

    `groups` are the metrics of each group of a split, where the task has groups.
    """

    metrics: dict[str, dict[str, float]]
    likelihood: dict[str, dict[str, float]]
    groups: dict[str, dict[str, dict[str, float]]]

    def under(self, metrics: str, likelihood: str, groups: str = "") -> dict[str, Any]:
        """Entries of a record with these keys; groups are left out where they have none."""
        told = {likelihood: self.likelihood} | ({groups: self.groups} if groups else {})
        return {metrics: self.metrics} | {key: value for key, value in told.items() if value}


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
        self.routing: dict[str, dict[str, Any]] = {}
        """By split what the experts of each matrix weighed when it was last judged; {} without experts."""
        self.groups = _groups(data, self.eval_splits)
        self._accuracy: dict[str, float] = {}
        """By group what its rows weigh the expert that is made for it, of the latest split."""

    def evaluate(self, *, keep: bool) -> Evaluation:
        """Judge every split; `keep` writes the outcome of every example to the run's folder."""
        outcomes = {split: self._outcomes(split, keep=keep) for split in self.eval_splits}
        found = {split: likelihood.summary(own) for split, own in outcomes.items()}
        return Evaluation(
            {split: self._values(split, own) for split, own in outcomes.items()},
            {split: nll for split, nll in found.items() if nll},
            {split: groups for split, own in outcomes.items() if (groups := self._by_group(split, own))},
        )

    def missing_views(self) -> dict[str, contextlib.AbstractContextManager[Any]]:
        """The views of the trained model that no process has judged on every split."""
        known, splits = self.record.content.get("views", {}), set(self.eval_splits)
        every = self.injection.hooks.views()
        return {name: view for name, view in every.items() if not splits <= set(known.get(name, {}))}

    def judge_views(self) -> None:
        """Record what each of them reaches, one after the other, so that none is judged twice."""
        for name, view in self.missing_views().items():
            with view:
                found = self.evaluate(keep=False).under("views", "view_likelihood")
            known = self.record.content
            self.record.update(**{key: known.get(key, {}) | {name: of} for key, of in found.items()})

    def evaluate_split(self, split: str, *, keep: bool = False) -> tuple[dict[str, float], dict[str, float]]:
        """The metrics of a split, and the likelihood of its references, {} where there is none."""
        outcomes = self._outcomes(split, keep=keep)
        return self._values(split, outcomes), likelihood.summary(outcomes)

    def _outcomes(self, split: str, *, keep: bool) -> list[dict[str, Any]]:
        """The outcomes of a split. ValueError for answers of which none can be had."""
        try:
            with (
                in_mode(self.injection.model, training=False),
                self.injection.effective(),
                self.injection.recorded_routing() as routing,
            ):
                outcomes = self._judged(split, routing)
        except NotFinite as broken:
            raise NotFinite(f"{split}: {broken}") from broken
        except ValueError as broken:
            raise ValueError(f"{split}: {broken}") from broken
        predictions = [o["prediction"] for o in outcomes]
        references = [o["reference"] for o in outcomes]
        if found := routing.summary():
            self.routing[split] = found
        if keep:
            if self.routing:
                self.record.update(routing=dict(self.routing))
            self.record.examples(split, outcomes)
            self._tell(split, predictions, references)
        return outcomes

    def _judged(self, split: str, routing: RoutingRecord) -> list[dict[str, Any]]:
        """The outcomes of a split, each group's with the model told of it, in the order of its items."""
        model, kind, data = self.injection.model, self.data.kind, self.data.splits[split]
        if not self.groups:
            return kind.outcomes(model, data)
        found: list[dict[str, Any]] = []
        for group in self.groups:
            rows = [n for n, own in enumerate(data[kind.task.groups]) if own == group]
            with self.injection.hooks.of_group(group), self.injection.recorded_routing() as own:
                found += kind.outcomes(model, data.select(rows)) if rows else []
            routing.extend(own)
            expert = self.injection.hooks.expert_of(group)
            if expert is not None and (summary := own.summary()):
                self._accuracy[group] = mean_load(summary, expert)
        return sorted(found, key=lambda outcome: outcome["item"])

    def _by_group(self, split: str, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """The metrics of each group; {} where the task has none."""
        if not self.groups:
            return {}
        data = self.data.splits[split]
        group_of = dict(zip(data["item"], data[self.data.kind.task.groups], strict=True))
        parts: dict[str, list[Mapping[str, Any]]] = {group: [] for group in self.groups}
        for outcome in outcomes:
            parts[group_of[outcome["item"]]].append(outcome)
        accuracy = self._accuracy
        return {
            group: self._values(f"{split}, {group}", own)
            | ({"routing_accuracy": accuracy[group]} if group in accuracy else {})
            for group, own in parts.items()
            if own
        }

    def _values(self, split: str, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The metrics of these outcomes, of those that they hold what it needs for."""
        return values_of(self.data.kind, self.metrics, outcomes, split)

    def _tell(self, split: str, predictions: list[Any], references: list[Any]) -> None:
        """Record how many answers differ, and what the commonest class alone would reach."""
        told = answers(predictions, references, getattr(self.data.kind, "labels", None))
        record = self.record.content
        record_of = {"answers": record.get("answers", {}) | {split: told}}
        if told["common"] is not None:
            of_it = [{"prediction": told["common"], "reference": reference} for reference in references]
            values = self._values(split, of_it)
            record_of["majority"] = record.get("majority", {}) | {split: values}
        self.record.update(**record_of)


def values_of(
    kind: TaskType, metrics: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]], what: str
) -> dict[str, float]:
    """The metrics that read what the outcomes hold, by name. ValueError for NaN or inf of `what`."""
    values: dict[str, float] = {}
    references = [outcome["reference"] for outcome in outcomes]
    for name, metric in metrics.items():
        if (read := reads(metric)) in outcomes[0]:
            given = kind.metric_arguments(name)
            predictions = [outcome[read] for outcome in outcomes]
            against = [outcome["tokens"] for outcome in outcomes] if read == "nll" else references
            values |= metric.compute(predictions=predictions, references=against, **given)
    check_values(values, what)
    return values


def _groups(data: TaskData, splits: Sequence[str]) -> list[str]:
    """The groups of the training examples, in their order; none where the task has no `groups`.

    ValueError where a split has not that column, or has other groups.
    """
    column = data.kind.task.groups
    if not column:
        return []
    for split in ("train", *splits):
        if column not in data.splits[split].column_names:
            known = ", ".join(data.splits[split].column_names)
            raise ValueError(f"task.groups={column} is no column of {split}, which has {known}")
    found = list(dict.fromkeys(data.splits["train"][column]))
    for split in splits:
        if others := set(data.splits[split][column]) - {*found}:
            raise ValueError(
                f"task.groups={column}: {split} has {min(others)!r}, of which train has no example"
            )
    return found


def check_references(data: TaskData, metrics: Mapping[str, Any]) -> None:
    """ValueError for a metric that cannot judge a split, even if each of its answers were right.

    Of texts so many as `TRIED` are tried, from all over the split.
    """
    kind = data.kind
    for split in data.splits.keys() - {"train"}:
        references = kind.references(kind.items(data.splits[split]))
        if isinstance(references[0], (str, list)):
            references = references[:: max(len(references) // TRIED, 1)]
        right = [reference[0] if isinstance(reference, list) else reference for reference in references]
        for name, metric in metrics.items():
            what = f"{split} ({len(right)} items)"
            best, of = perfect(name, metric, right, references, kind)
            try_out(name, metric, best, of, what, **kind.metric_arguments(name))


def perfect(
    name: str, metric: Any, right: list[Any], references: list[Any], kind: TaskType
) -> tuple[list[Any], list[Any]]:
    """The inputs of a metric where all answers are `right`. ValueError for one that reads something else."""
    read = reads(metric)
    if read == "prediction":
        return right, references
    if read in kind.judgements:
        return [1.0] * len(right), references
    if read != "nll":
        raise ValueError(f"metric {name!r} reads {read!r}, which type={kind.task.type} does not judge")
    if not kind.has_likelihood:
        asked = f"type={kind.task.type}, task.likelihood={str(kind.task.likelihood).lower()}"
        raise ValueError(f"metric {name!r} is of likelihoods, and {asked} gives none")
    return [0.0] * len(right), [1] * len(right)


def check_inputs(model: nn.Module, readings: Mapping[str, Reading]) -> None:
    """ValueError for tokens and lengths that the model cannot take."""
    if not any(reading.read for reading in readings.values()):
        return
    words = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    for reading in readings.values():
        if reading.token >= words:
            raise ValueError(
                f"the tokenizer gives the token {reading.token} and the model has {words}; they do not "
                "belong together"
            )
    check_positions(model, readings)


def check_positions(model: nn.Module, readings: Mapping[str, Reading], virtual: int = 0) -> None:
    """ValueError for a length that the model cannot take beside so many `virtual` tokens."""
    positions, two_parts = positions_of(model), model.config.is_encoder_decoder  # type: ignore[union-attr]
    for split, reading in readings.items():
        read, generated, written = reading.read, reading.generated, reading.written
        needed = max(read, generated, written) if two_parts else read + generated + virtual
        if positions is not None and needed > positions:
            more = f" and task.max_new_tokens={generated}" if generated else ""
            more += f" beside {virtual} virtual tokens" if virtual else ""
            raise ValueError(
                f"{split}: an example of {read} tokens{more} needs {needed} positions and the model has "
                f"{positions}; give a smaller task.max_length{' or task.max_new_tokens' if generated else ''}"
            )


def positions_of(model: nn.Module) -> int | None:
    """The positions that a model can tell apart; None where its configuration sets no bound.

    Some tables of positions have rows before the first: RoBERTa's begin after the padding token, OPT's at 2.
    """
    config: Any = model.config
    bounds = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    for name, module in named_base_modules(model):
        if isinstance(module, nn.Embedding) and ("position" in name or name.endswith("wpe")):
            before = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            bounds.append(module.num_embeddings - before)
    return min((bound for bound in bounds if isinstance(bound, int) and bound > 0), default=None)
