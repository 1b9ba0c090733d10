"""One LoRA a task in one adapter: those of earlier tasks stay as they are, the newest trains.

Shapes: O out, I in, R rank, K tasks before the newest, T all tasks; x is (..., I).
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.host import LayerHost
from lora_zoo.core.init import Init
from lora_zoo.variants.low_rank import Scaled

Tasks = Sequence[str] | Literal["auto"]


def names_of(tasks: Tasks) -> tuple[str, ...]:
    """The names of tasks, of "auto" a made-up one. ValueError where there are none, or one is named twice."""
    found = ("task",) if isinstance(tasks, str) else tuple(tasks)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"tasks must be one name or more, each once; got {list(found)}")
    return found


class TaskLoRAs(Scaled, ABC):
    """Owns the newest task's factors A (R, I) and B (O, R), and the earlier ones' as buffers.

    `tasks` are the names of all of them, the newest one last; auto is one task, unless a program gives more.
    What the layer adds is `branch` of their outputs.
    """

    pointwise = False
    A_KRI: Tensor | None
    B_KOR: Tensor | None

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        tasks: Tasks = "auto",
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.tasks, self.scale = names_of(tasks), self.scale_of(alpha, rank)
        self.told: str | None = None
        """The task to which all rows belong, where the model is told of it."""
        O, I = context.shape
        first, _ = context.first_factors(init, rank=rank, scale=self.scale)
        self.A_RI, self.B_OR = nn.Parameter(first.A_RI), nn.Parameter(first.B_OR)
        earlier = len(self.tasks) - 1
        self.register_buffer("A_KRI", context.full((earlier, rank, I)) if earlier else None)
        self.register_buffer("B_KOR", context.full((earlier, O, rank)) if earlier else None)
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B"

    def stacked(self) -> tuple[Tensor, Tensor]:
        """s B (T, O, R) and A (T, R, I) of all tasks."""
        B_TOR, A_TRI = self.B_OR[None], self.A_RI[None]
        if self.A_KRI is not None and self.B_KOR is not None:
            B_TOR, A_TRI = torch.cat([self.B_KOR, B_TOR]), torch.cat([self.A_KRI, A_TRI])
        return self.scale * B_TOR, A_TRI

    @torch.no_grad()
    def succeed(self, before: Mapping[str, Tensor]) -> None:
        """Take over the LoRAs of an adapter of one task less, from its tensors, in place."""
        for stack, own in (("A_KRI", "A_RI"), ("B_KOR", "B_OR")):
            earlier = [before[stack]] if stack in before else []
            getattr(self, stack).copy_(torch.cat([*earlier, before[own][None]]))

    @abstractmethod
    def branch(self, x: Tensor, dropped: Tensor, host: LayerHost) -> Tensor:
        """The addition to the layer's output (..., O), of its input and the same under dropout."""

    def one(self, number: int, x: Tensor, host: LayerHost) -> Tensor:
        """s B A x of the task of this number."""
        if self.A_KRI is None or self.B_KOR is None or number == len(self.A_KRI):
            return host.low_rank(x, self.scale * self.B_OR, self.A_RI)
        return host.low_rank(x, self.scale * self.B_KOR[number], self.A_KRI[number])

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y = host.base(x)
        return y + self.branch(x, host.dropped(x, self.dropout), host).to(y.dtype)


class ExpertsOfTasks(AdapterHooks):
    """The expert of a group of rows is the LoRA of the task of that name."""

    def expert_of(self, name: str) -> int | None:
        tasks = next(iter(self.adapters.values())).tasks
        return tasks.index(name) if name in tasks else None


class ToldOfTasks(AdapterHooks):
    """Tells all adapters of the task to which the rows belong."""

    @contextlib.contextmanager
    def of_group(self, name: str) -> Iterator[None]:
        for adapter in self.adapters.values():
            adapter.told = name
        try:
            yield
        finally:
            for adapter in self.adapters.values():
                adapter.told = None
