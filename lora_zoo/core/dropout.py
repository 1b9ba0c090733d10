"""Dropout whose masks are keyed by seed, layer and call."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from lora_zoo.core.processes import current
from lora_zoo.core.recomputation import CallNumbers, in_backward
from lora_zoo.core.routing import RoutingRecord
from lora_zoo.core.seeding import generator


class ForwardCounter:
    """Counts the training-mode calls of each dropout of one injection, which key its masks.

    A call that is recomputed in the backward pass (gradient checkpointing) keeps its number and so its mask,
    whatever ran in between.
    """

    def __init__(self) -> None:
        self.sites: dict[str, CallNumbers] = {}
        self.runs = True  # not while the model's passes are those of other adapters
        self.emitted: list[Tensor] = []
        """The scalars that adapters emitted in the pass."""
        self.routing: RoutingRecord | None = None
        """Where mixtures of experts note their weights; None where nobody asks."""
        self.tasks: Tensor | None = None
        """The tasks of passes that are not told `task_ids` themselves: int64, one an example."""
        self.task_ids: Tensor | None = None
        self._mask: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model has emitted nothing: what a pass left belongs to the graph of that pass."""
        return self.__dict__ | {"emitted": []}

    @property
    def counts(self) -> dict[str, int]:
        """The calls so far of each site with dropout; assigned to, each goes on from there."""
        return {name: site.next for name, site in self.sites.items()}

    @counts.setter
    def counts(self, counts: Mapping[str, int]) -> None:
        for name, site in self.sites.items():
            site.next = counts[name]

    def begin(self, module: nn.Module, given: object, named: Mapping[str, Any]) -> None:
        """A forward pre-hook for the adapted model: a new pass emits anew, and has tasks and padding."""
        if not self.runs:
            return
        if module.training and self.emitted and not in_backward():
            self.emitted.clear()
        self.task_ids = named.get("task_ids", self.tasks)
        two_parts = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
        self._mask = None if two_parts else named.get("attention_mask")

    def kept(self, of: Tensor) -> Tensor | None:
        """True for the tokens of a pass's (..., E) that are no padding; None where that is not known."""
        known = self._mask is not None and self._mask.ndim == 2 and self._mask.shape == of.shape[:-1]
        return self._mask.bool() if known and self._mask is not None else None

    def tokens(self, of: Tensor) -> Tensor:
        """The rows (T, E) of a pass's (..., E), without padding where that is known."""
        kept = self.kept(of)
        return of.flatten(0, -2) if kept is None else of[kept]

    def tasks_of(self, examples: int) -> Tensor | None:
        """The tasks of so many examples, each of which may stand for several rows; None where unknown.

        ValueError where they are no such number.
        """
        if self.task_ids is None:
            return None
        times, rest = divmod(examples, len(self.task_ids))
        if rest or not times:
            raise ValueError(f"task_ids are of {len(self.task_ids)} examples, and the pass has {examples}")
        return self.task_ids.repeat_interleave(times)


SPARE = 8
"""So many standard deviations more positions are drawn than are expected."""


@dataclass(frozen=True)
class Mask(ABC):
    """The entries of an input that a pass drops; the others are multiplied by `scale`, 1 / (1 - p)."""

    entries: Tensor
    scale: float

    @classmethod
    @abstractmethod
    def draw(cls, like: Tensor, p: float, source: torch.Generator) -> Self: ...

    @abstractmethod
    def zero(self, x: Tensor) -> Tensor:
        """`x` with its dropped entries zero, differentiable."""

    @abstractmethod
    def zero_(self, x: Tensor) -> Tensor:
        """The same in place, in contiguous `x`."""

    def drop(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and x.requires_grad
        return self.zero(x) * self.scale if learns else self.zero_(x.contiguous() * self.scale)

    def drop_(self, x: Tensor) -> Tensor:
        return self.zero_(x.mul_(self.scale))


@final
class SparseMask(Mask):
    """The dropped entries' positions (dropped,): for small p the cheapest to draw, to keep and to apply."""

    @classmethod
    def draw(cls, like: Tensor, p: float, source: torch.Generator) -> Self:
        expected = like.numel() * p
        drawn = max(int(expected + SPARE * math.sqrt(expected)), 1) + 16
        reached, last = list[Tensor](), 0.0
        while last <= like.numel():  # one draw falls short once in 10^15
            # From one dropped entry to the next it is a geometrically distributed number of steps.
            u = torch.rand(drawn, generator=source, dtype=torch.float64)
            reached.append(u.neg_().log1p_().div_(math.log1p(-p)).floor_().add_(1).cumsum_(0).add_(last))
            last = float(reached[-1][-1])
        ends = torch.cat(reached) if len(reached) > 1 else reached[0]
        within = int(torch.searchsorted(ends, float(like.numel()), right=True))
        return cls(ends[:within].to(torch.int64).sub_(1), 1 / (1 - p))

    def zero(self, x: Tensor) -> Tensor:
        return x.flatten().index_fill(0, self.entries, 0).view_as(x)

    def zero_(self, x: Tensor) -> Tensor:
        x.view(-1).index_fill_(0, self.entries, 0)
        return x


@final
class DenseMask(Mask):
    """A byte an entry, 1 where it is kept; p is rounded to the 16 random bits that are drawn for each."""

    @classmethod
    def draw(cls, like: Tensor, p: float, source: torch.Generator) -> Self:
        dropped = min(round(p * 2**16), 2**16 - 1)
        words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
        # random_() without bounds leaves out the sign bit; with these, all 64 bits are random.
        bits = words.random_(-(2**63), None, generator=source).view(torch.int16)[: like.numel()]
        return cls(bits >= dropped - 2**15, 1 / (1 - dropped / 2**16))

    def zero(self, x: Tensor) -> Tensor:
        return x * self.entries.to(x.dtype).view_as(x)

    def zero_(self, x: Tensor) -> Tensor:
        return x.mul_(self.entries.to(x.dtype).view_as(x))


SPARSE_UP_TO = 0.125
"""Up to this p positions are cheaper than a byte for every entry."""


class Dropout(nn.Module):
    """Inverted dropout whose masks depend on the seed, the layer's name and the call, and on nothing else.

    `of_rows` says that its input is of examples, which several processes divide: each then has masks of its
    own. Masks of parameters are alike in all of them. Raises ValueError unless 0 <= p < 1.
    """

    def __init__(
        self, p: float, *, seed: int, name: str, counter: ForwardCounter, of_rows: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"lora_dropout must lie in [0, 1); got {p}")
        self.p, self.seed, self.name, self.of_rows = p, seed, name, of_rows
        self.calls = counter.sites.setdefault(name, CallNumbers()) if p else CallNumbers()

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        return x if mask is None else mask.drop(x)

    def mask(self, x: Tensor) -> Mask | None:
        """This call's mask for an input like `x`; None where nothing is dropped."""
        return self._drawn(x.detach()) if self.training and self.p else None

    @torch.compiler.disable  # the seed is hashed in Python, from a count that is a constant once compiled
    def _drawn(self, x: Tensor) -> Mask:
        source = self._source(x.device)
        kind: type[Mask] = SparseMask if self.p <= SPARSE_UP_TO and x.device.type == "cpu" else DenseMask
        return kind.draw(x, self.p, source)

    def _source(self, device: torch.device) -> torch.Generator:
        """The numbers of this call."""
        of = [f"process {rank}"] if self.of_rows and (rank := current().rank) else []
        return generator("dropout", self.seed, self.name, self.calls.number(), *of, device=device)

    def end(self) -> None:
        """Drop nothing from now on, in training mode either."""
        self.p = 0.0

    def extra_repr(self) -> str:
        return f"p={self.p}"


class SpanDropout(Dropout):
    """Drops ⌈p T⌉ neighbours of the last axis's T, their place drawn for each row; never all of them.

    What is kept is scaled by T / (T - ⌈p T⌉).
    """

    @torch.compiler.disable
    def _drawn(self, x: Tensor) -> Mask:
        source = self._source(x.device)
        T = x.shape[-1]
        length = min(math.ceil(self.p * T), T - 1)
        start = torch.randint(T - length + 1, (*x.shape[:-1], 1), generator=source, device=x.device)
        place = torch.arange(T, device=x.device) - start
        return DenseMask(((place < 0) | (place >= length)).flatten(), T / (T - length))
