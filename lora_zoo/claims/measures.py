"""Numbers of one run, and quantities that claims are about: from its record, its history and its ΔW."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lora_zoo.analysis.continual import continual
from lora_zoo.claims.evidence import Measure, Missing, aligned
from lora_zoo.claims.hypotheses import PLAIN, Counted, Hypothesis, Range, Sampled, Scale
from lora_zoo.core.registry import Registry
from lora_zoo.runs import deltas, updates

M = TypeVar("M", bound=Measure)


@dataclass(frozen=True)
class Quantity:
    """A number of a run (a column, or a function of the run) with its name and unit.

    Without a unit it is a score: ranges are in points of the metric. Means are taken on `scale`.
    """

    name: str
    unit: str
    of: str | Measure
    scale: Scale = PLAIN

    def hypothesis(
        self, label: str, values: pd.Series, claimed: Range, unit: str, scale: Scale
    ) -> Hypothesis:
        """`values`, of this quantity or of its ratio, lie in the range."""
        return Sampled(label, values, claimed, unit, scale)


class CountedQuantity(Quantity):
    """A quantity that is counted and not sampled: its runs have no spread by chance."""

    def hypothesis(
        self, label: str, values: pd.Series, claimed: Range, unit: str, scale: Scale
    ) -> Hypothesis:
        return Counted(label, values, claimed, unit)


QUANTITIES: Registry[Quantity] = Registry("quantity", "lora_zoo.claims")


def register_quantity(
    id: str, name: str, unit: str, *, scale: Scale = PLAIN, counted: bool = False
) -> Callable[[M], M]:
    """Add the quantity that the function below takes of a run; rows of the catalogue call it `id`."""

    def add(measure: M) -> M:
        made = (CountedQuantity if counted else Quantity)(name, unit, measure, scale)
        QUANTITIES.add(id, made, source=measure)
        return measure

    return add


@register_quantity("early_loss", "early loss", "nats a token")
def early_loss(run: pd.Series) -> float:
    """The mean training loss logged in the first quarter of the steps."""
    logged = _logged(run, "loss")
    end = max(step for step, _ in logged)
    early = [loss for step, loss in logged if step <= end / 4]
    return float(np.mean(early)) if early else math.nan


@register_quantity("gradient_norm", "gradient norm", "norm")
def gradient_norm(run: pd.Series) -> float:
    """The mean norm of the gradient (before clipping) over all logged steps after the first.

    At the first step only one of LoRA's factors has a gradient.
    """
    return float(np.mean([norm for step, norm in _logged(run, "grad_norm") if step > 1] or [math.nan]))


@register_quantity("forgotten", "growth of the pretraining loss", "nats a token")
def forgotten(run: pd.Series) -> float:
    """The growth of the loss on the text of pretraining."""
    return number(run.get("retention_after")) - number(run.get("retention_before"))


@register_quantity("task_forgetting", "forgetting of earlier tasks", "")
def task_forgetting(run: pd.Series) -> float:
    """The mean fall of a sequence's earlier tasks below their best, on the test split."""
    return _of_a_sequence(run, "task_forgetting")


@register_quantity("learning_accuracy", "accuracy on each task when it is learned", "")
def learning_accuracy(run: pd.Series) -> float:
    """The mean score of a sequence's tasks just after each was learned, on the test split."""
    return _of_a_sequence(run, "learning_accuracy")


def _of_a_sequence(run: pd.Series, measure: str) -> float:
    told = continual(run.to_frame().T)
    return float(told[measure].iloc[0]) if len(told) else math.nan


@register_quantity("gap", "gap", "")
def gap(run: pd.Series) -> float:
    """The score on the training split less that on the test split."""
    train = run.get(f"metrics.train.{run.get('metric')}")
    if train is None or pd.isna(train):
        raise Missing("the runs did not evaluate the training split")
    return number(train) - number(run.get("test"))


def _logged(run: pd.Series, what: str) -> list[tuple[float, float]]:
    """(step, value) of every entry of the run's history that has both as finite numbers. Missing without."""
    history = run.get("history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    pairs = [(number(entry.get("step")), number(entry.get(what))) for entry in entries]
    found = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if not found:
        raise Missing(f"the runs logged no {what}")
    return found


@register_quantity("greatest_change", "||ΔW||", "Frobenius norm", counted=True)
def greatest_change(run: pd.Series) -> float:
    """The greatest ||ΔW|| of a run's matrices."""
    return float(pd.to_numeric(changes(run)["norm"], errors="coerce").max())


@register_quantity("update_rank", "rank of ΔW", "components", counted=True)
def update_rank(run: pd.Series) -> float:
    """The mean numerical rank of a run's ΔW over its matrices."""
    return float(pd.to_numeric(changes(run)["numerical_rank"], errors="coerce").mean())


def number(value: Any) -> float:
    """A cell as a number; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


SCORE = Quantity("", "", "test")


def changes(run: pd.Series) -> pd.DataFrame:
    """One row a changed matrix of a run: name, role, layer, norm, numerical_rank, … Missing without any."""
    try:
        found = updates(run.to_frame().T)
    except (KeyError, TypeError, IndexError, ValueError) as unreadable:
        raise Missing("the runs recorded no ΔW") from unreadable
    if found.empty:
        raise Missing("the runs recorded no ΔW")
    return found


def recorded(run: pd.Series, table: str) -> pd.DataFrame:
    """A table of `lora_zoo.updates` recorded with a run, a row a matrix. Missing where there is none."""
    try:
        return deltas(run.to_frame().T, table)
    except (KeyError, TypeError, AttributeError, ValueError) as unreadable:
        raise Missing(
            f"the runs recorded no table {table!r} (python -m lora_zoo.spectra RUN… --record makes it)"
        ) from unreadable


def over_matrices(table: str, formula: str, roles: Sequence[str] = (), *, total: bool = False) -> Measure:
    """A run's mean or total, over its matrices (of `roles`), of a formula of a recorded table's columns.

    NaN where no matrix has the quantity.
    """

    def measure(run: pd.Series) -> float:
        rows = recorded(run, table)
        try:
            mine = rows[rows["role"].isin(roles)] if roles else rows
            values = pd.to_numeric(mine.eval(formula), errors="coerce").replace(
                [math.inf, -math.inf], math.nan
            )
        except (KeyError, NameError, TypeError) as lacking:
            raise Missing(f"the table {table!r} of the runs does not give {formula}") from lacking
        return float(values.sum(min_count=1) if total else values.mean())

    measure.__name__ = f"{formula} in {table}"
    return measure


def quantity(
    name: str,
    unit: str,
    of: str,
    *,
    table: str = "",
    roles: Sequence[str] = (),
    total: bool = False,
    counted: bool = False,
) -> Quantity:
    """A quantity of a row of the catalogue: `of` is a column of the runs, or a formula `over_matrices`."""
    measured = over_matrices(table, of, roles, total=total) if table else of
    return (CountedQuantity if counted else Quantity)(name, unit, measured)


def exponents(table: pd.DataFrame) -> pd.Series:
    """By seed (row), the slope of log(value) on log(column): the exponent of a power law."""
    if (table <= 0).any(axis=None):
        raise Missing("a value is not positive, so there is no power law")
    x = np.log(np.array(table.columns, dtype=float))
    return table.apply(lambda row: float(np.polyfit(x, np.log(row.to_numpy(dtype=float)), 1)[0]), axis=1)


def best_by_seed(scores: Mapping[float, pd.Series]) -> pd.Series:
    """By seed, log2 of the key with the best score; ties count as their mean."""
    table = aligned(scores)
    logs = np.log2(np.array(table.columns, dtype=float))
    return table.apply(lambda row: float(logs[(row == row.max()).to_numpy()].mean()), axis=1)
