"""Continual learning in numbers: the accuracy matrix of a sequence of tasks and what is read off it.

a_TT holds in row i, column j what the model reaches on the j-th task once it has learned the i-th; higher is
better. Average accuracy and backward transfer: Lopez-Paz & Ranzato (2017), arXiv:1706.08840; forgetting:
Chaudhry et al. (2018), arXiv:1801.10112.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from lora_zoo.runs.curves import groups

MEASURES = (
    "average_accuracy",
    "learning_accuracy",
    "backward_transfer",
    "task_forgetting",
    "forward_transfer",
    "routing_accuracy",
)


class Matrix(NamedTuple):
    """The accuracy matrix of one run: its tasks in the order in which they were learned."""

    tasks: list[str]
    a_TT: np.ndarray
    before_T: np.ndarray
    """What the model reached before the first task; NaN where that was not judged."""


def average_accuracy(a_TT: np.ndarray) -> float:
    """The mean over tasks once all are learned: (1/T) Σ_j a_Tj."""
    return float(_square(a_TT)[-1].mean())


def learning_accuracy(a_TT: np.ndarray) -> float:
    """The mean over tasks of what each reached just after it was learned: (1/T) Σ_j a_jj."""
    return float(np.diag(_square(a_TT)).mean())


def backward_transfer(a_TT: np.ndarray) -> float:
    """1/(T-1) Σ_{j<T} (a_Tj - a_jj): below 0 where later tasks cost earlier ones. NaN for one task."""
    a_TT = _square(a_TT)
    return float((a_TT[-1] - np.diag(a_TT))[:-1].mean()) if len(a_TT) > 1 else float("nan")


def forgetting(a_TT: np.ndarray) -> float:
    """1/(T-1) Σ_{j<T} (max_{i<T} a_ij - a_Tj): how far tasks fell below their best. NaN for one task."""
    a_TT = _square(a_TT)
    return float((a_TT[:-1].max(axis=0) - a_TT[-1])[:-1].mean()) if len(a_TT) > 1 else float("nan")


def forward_transfer(a_TT: np.ndarray, before_T: Sequence[float] | np.ndarray) -> float:
    """1/(T-1) Σ_{j>1} (a_{j-1,j} - b_j), b what each task reached before all training. NaN for one task."""
    a_TT = _square(a_TT)
    gains = np.diag(a_TT, k=1) - np.asarray(before_T, dtype=float)[1:]
    return float(gains.mean()) if len(a_TT) > 1 else float("nan")


def _square(a_TT: np.ndarray) -> np.ndarray:
    a_TT = np.asarray(a_TT, dtype=float)
    if a_TT.ndim != 2 or a_TT.shape[0] != a_TT.shape[1] or not len(a_TT):
        raise ValueError(f"an accuracy matrix has a row and a column a task; got the shape {a_TT.shape}")
    return a_TT


def matrices(frame: pd.DataFrame, split: str = "test", metric: str = "") -> dict[str, Matrix]:
    """The matrix of each run of a frame that learned its groups one after the other.

    It holds `metric`, or the one that counts, and NaN where that is not known. Groups that no stage learned
    are left out.
    """
    counts = dict(zip(frame["run"], frame["metric"], strict=True))
    table = groups(frame)
    asked = metric or table["run"].map(counts)
    table = table[(table["split"] == split) & (table["metric"] == asked)]
    return {str(run): found for run, own in table.groupby("run", sort=False) if (found := _matrix(own))}


def _matrix(own: pd.DataFrame) -> Matrix | None:
    tasks = [task for task in dict.fromkeys(own.sort_values("stage")["learned"]) if task]
    if not tasks or not {*tasks} <= {*own["group"]}:
        return None
    wide = own.pivot_table("value", "stage", "group").reindex(columns=tasks)
    before = wide.loc[0] if 0 in wide.index else wide.iloc[0] * np.nan
    after = wide.drop(index=0, errors="ignore").to_numpy(dtype=float)
    return Matrix(tasks, after, before.to_numpy(dtype=float)) if len(after) == len(tasks) else None


def continual(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """A row for each run with a matrix: run, average_accuracy, learning_accuracy, backward_transfer,
    task_forgetting, forward_transfer and, of methods that choose a LoRA for a row, routing_accuracy: the mean
    over tasks of what their rows weigh their own at the end.
    """
    accuracy = _routing_accuracy(frame, split)
    rows = [
        {
            "run": run,
            "average_accuracy": average_accuracy(found.a_TT),
            "learning_accuracy": learning_accuracy(found.a_TT),
            "backward_transfer": backward_transfer(found.a_TT),
            "task_forgetting": forgetting(found.a_TT),
            "forward_transfer": forward_transfer(found.a_TT, found.before_T),
            "routing_accuracy": accuracy.get(run, float("nan")),
        }
        for run, found in matrices(frame, split).items()
    ]
    return pd.DataFrame(rows, columns=["run", *MEASURES])


def _routing_accuracy(frame: pd.DataFrame, split: str) -> dict[str, float]:
    return {
        run: average_accuracy(own.a_TT) for run, own in matrices(frame, split, "routing_accuracy").items()
    }
