"""DyLoRA: Dynamic Search-Free Low-Rank Adaptation (Valipour et al., EACL 2023)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.init import Init
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import register
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Additive


class RankSampling(AdapterHooks):
    """Algorithm 1: every step draws one rank b ~ U{1 … r} for all layers and trains what is left of them.

    `update=all` trains the rows up to b, `update=last` the b-th alone (the paper's frozen variant). Layers of
    another rank get the same share of it. b follows from seed and step; outside of training it is r.

    The `views` are ranks at which the trained adapter is judged as well (a layer of a smaller rank keeps its
    own): these, or with true 1, 2, 4, … below r.
    """

    def __init__(
        self,
        adapters: Mapping[str, "DyLoRA"],
        *,
        update: Literal["all", "last"] = "all",
        views: bool | Sequence[int] = True,
    ) -> None:
        super().__init__(adapters)
        self.sites, self.last = list(adapters.values()), update == "last"
        self.rank = max((site.rank for site in self.sites), default=0)
        doublings = [2**k for k in range(self.rank.bit_length()) if 2**k < self.rank]
        self.judged = (doublings if views else []) if isinstance(views, bool) else list(views)

    def on_train_begin(self, total: int) -> None:
        self.views()

    def views(self) -> dict[str, contextlib.AbstractContextManager[Any]]:
        for b in self.judged:
            if not 1 <= b <= self.rank:
                raise ValueError(f"dylora: views must be ranks from 1 to {self.rank}; got {b}")
        return {f"rank={b}": self._cut_to(b) for b in self.judged}

    @contextlib.contextmanager
    def _cut_to(self, b: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for site in self.sites:
                stack.enter_context(site.truncated(min(b, site.rank)))
            yield

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        share = float(torch.rand((), generator=generator("dylora", self.seed, progress.step)))
        with contextlib.ExitStack() as stack:
            for site in self.sites:
                stack.enter_context(site.truncated(1 + int(share * site.rank), last=self.last))
            yield

    def law(self) -> None:
        assert all(site.width == site.rank for site in self.sites), "a rank is left truncated"


@register("dylora")
class DyLoRA(Additive):
    """§4.1: the leading b rows of A and columns of B are a LoRA of rank b, for every b up to r."""

    paper = "arXiv:2210.07558"
    equation = "W' = W + (α/b) B[:, :b] A[:b], b drawn each step, b = r afterwards"
    count = "R * (O + I)"
    hooks = RankSampling

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.width, self.last = self.rank, False

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual

    @contextlib.contextmanager
    def truncated(self, width: int, *, last: bool = False) -> Iterator[None]:
        """Inside, the rank is `width`; `last`: of it, only the last row and column get a gradient."""
        before, (self.width, self.last) = (self.width, self.last), (width, last)
        try:
            yield
        finally:
            self.width, self.last = before

    def shrink(self, index_K: Tensor) -> dict[str, Any]:
        smaller = super().shrink(index_K)
        self.width = self.rank
        return smaller

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        b, scale = self.width, self.scaling(self.alpha, self.width)
        B_OR, A_RI = self.B_OR[:, :b], self.A_RI[:b]
        if self.last:
            B_OR = torch.cat([B_OR[:, :-1].detach(), B_OR[:, -1:]], dim=1)
            A_RI = torch.cat([A_RI[:-1].detach(), A_RI[-1:]])
        return FactorPair(B_OR, A_RI, scale), None

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """At every b the update is LoRA's of rank b with the leading rows: α/b times their outer products."""
        sum_OI = torch.zeros_like(self.B_OR @ self.A_RI)
        for b in range(1, self.rank + 1):
            sum_OI = sum_OI + torch.outer(self.B_OR[:, b - 1], self.A_RI[b - 1])
            with self.truncated(b):
                torch.testing.assert_close(self.weight(W_OI), W_OI + self.alpha / b * sum_OI)
