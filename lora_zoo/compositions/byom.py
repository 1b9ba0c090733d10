"""BYOM: Building Your Own Multi-Task Model For Free (Jiang et al., 2023), arXiv:2310.01886.

A common model and, for each task, what it lacks of the task's own model, small. The task is chosen at use.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lora_zoo.compositions.merges import Thinned
from lora_zoo.compositions.svd import check_rank, note_of, truncated
from lora_zoo.compositions.task_vectors import TaskVectors, trimmed
from lora_zoo.core.composition import register
from lora_zoo.core.errors import unknown


@register("byom")
class BYOM(Thinned):
    """BYOM-FFT: θ* = W + Σ w_i ΔW_i, and for the `task` (an adapter's name) a part of what θ* lacks.

    That part are the entries of W'_task - θ* of largest magnitude: at density 1 the task has its own model
    back. Without a task it is θ* alone.
    """

    equation = "W' = θ* + top_density(W'_task - θ*), θ* = W + Σ w_i ΔW_i"

    def __init__(
        self,
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        density: float = 0.2,
        task: str | None = None,
    ) -> None:
        super().__init__(names, weights=weights, density=density)
        self.task = None if task is None else known_task(task, self.names)

    def leaves(self, name: str) -> bool:
        whole = self.density == 1 and name == self.task
        return whole or (self.weights.get(name, 1.0) == 1.0 and self.task in (None, name))

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        common = self.weighted(changes)
        if self.task is None:
            return common
        own = changes.get(self.task, torch.zeros_like(common))
        return common + trimmed(own - common, self.density)


@register("byom_lora")
class BYOMLoRA(TaskVectors):
    """BYOM-LoRA: the `task`'s own ΔW alone, at a smaller rank: there is no common part.

    Other named adapters are idle. The relative error of each matrix is kept.
    """

    equation = "W' = W + svd_rank(ΔW_task)"

    def __init__(self, names: Sequence[str], *, task: str, rank: int | None = None) -> None:
        super().__init__(names)
        self.task, self.rank = known_task(task, self.names), check_rank(rank)
        self.errors: dict[str, float] = {}

    def leaves(self, name: str) -> bool:
        return name not in self.names or (name == self.task and self.rank is None)

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        if self.task not in changes:
            return torch.zeros_like(next(iter(changes.values())))
        cut, self.errors[place] = truncated(changes[self.task], self.rank)
        return cut

    def notes(self) -> list[str]:
        return note_of(self.errors, self.rank)


def known_task(task: str, names: Sequence[str]) -> str:
    """`task`. ValueError where it is no adapter's name."""
    if task not in names:
        raise ValueError(unknown("task", task, names))
    return task
