"""AFLoRA: Adaptive Freezing of Low Rank Adaptation (Liu et al., ACL 2024)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.variants.adaptive.batched import smooth, views
from lora_zoo.variants.adaptive.schedule import CubicSchedule
from lora_zoo.variants.low_rank import Product


def whole_steps(steps: float) -> int:
    """The steps that fit; a product that rounding has left just below a whole number is that number."""
    return int(steps + 1e-9)


class Freezing(AdapterHooks):
    """§3: projections whose gradients matter least are frozen first, until the vectors alone train.

    Scores are taken every `deltaT` steps, from the mean |gradient| since the last time. `tinit` and `tfinal`
    are steps, or shares of the run if below 1: freezing begins after `tinit` and is complete `tfinal` before
    the end. A frozen projection has no gradient, so that no optimiser moves it or decays it. Of all
    projections, square ones too, the share (§3: r(t)) that is free is that of tensors; the official code
    freezes square ones from the start.
    """

    window: Tensor
    mean: Tensor
    spread: Tensor
    seen: Tensor
    free: Tensor

    def __init__(
        self,
        adapters: Mapping[str, "AFLoRA"],
        *,
        tinit: float = 0.05,
        tfinal: float = 0.7,
        deltaT: int = 10,
        beta1: float = 0.85,
        beta2: float = 0.95,
    ) -> None:
        super().__init__(adapters)
        if not (deltaT >= 1 and 0 <= beta1 < 1 and 0 <= beta2 < 1):
            needs = "needs deltaT >= 1, 0 <= beta1 < 1 and 0 <= beta2 < 1"
            raise ValueError(f"aflora: {needs}; got {deltaT}, {beta1} and {beta2}")
        self.schedule = CubicSchedule("aflora", tinit, tfinal, whole=whole_steps)
        self.deltaT, self.betas = deltaT, (beta1, beta2)
        like, entries = self.projections[0], sum(p.numel() for p in self.projections)
        for name in ("window", "mean", "spread"):
            self.register_buffer(name, like.new_zeros(entries))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long, device=like.device))
        self.register_buffer("free", torch.ones(len(self.projections), dtype=torch.bool, device=like.device))

    @property
    def projections(self) -> list[nn.Parameter]:
        return [p for adapter in self.adapters.values() for p in (adapter.A_RI, adapter.B_OR)]

    def on_train_begin(self, total: int) -> None:
        self.schedule.check(total)
        self.to_adapters()

    def share(self, progress: Progress) -> float:
        """Eq. 3: the share r(t) of the projections that is still free."""
        return self.schedule.left(progress)

    @torch.no_grad()
    def on_after_backward(self, progress: Progress) -> None:
        projections, free_ones = self.projections, self.free.tolist()
        windows = views(self.window, projections)
        for p, own, free in zip(projections, windows, free_ones, strict=True):
            if not free:
                p.grad = None
            elif p.grad is not None:
                own.add_(p.grad.abs())
        self.seen += 1

    @torch.no_grad()
    def on_step_end(self, progress: Progress) -> None:
        end = self.schedule.span(progress.total)[1]
        if progress.step == end or (progress.step < end and progress.step % self.deltaT == 0):
            self.score()
            self.freeze(math.ceil(self.share(progress) * len(self.free)))

    def score(self) -> None:
        """Eq. 2: the sensitivity I = |gradient| and its uncertainty |I - Ī|, both smoothed."""
        now = self.window / self.seen.clamp_min(1)
        smooth([now], [self.mean], [self.spread], self.betas)
        self.window.zero_()
        self.seen.zero_()

    def freeze(self, left: int) -> None:
        """Freeze all but the `left` projections of highest mean score; what is frozen stays so."""
        products = views(self.mean * self.spread, self.projections)
        scores = torch.stack([own.mean() for own in products]).masked_fill(~self.free, -1.0)
        kept = torch.zeros_like(self.free)
        kept[scores.topk(left).indices] = True
        self.free &= kept

    def law(self) -> None:
        assert not self.free.any(), "after the run a projection still trains"


@register("aflora")
class AFLoRA(Product):
    """Eq. 1: VeRA's form with a trained pair in each matrix, which freezes as the vectors go on; no scale."""

    paper = "arXiv:2403.13269"
    equation = "W' = W + diag(b) B diag(d) A, A and B frozen one by one"
    count = "R * (O + I) + O + R"
    hooks = Freezing
    inits = ("kaiming",)

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 4,
        init: str = "kaiming",
        d_initial: float = 0.1,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        if not d_initial:
            raise ValueError("aflora: with d_initial=0 nothing ever gets a gradient; the code's is 0.1")
        (O, I), gain = context.shape, math.sqrt(2)
        B_RO = context.uniform("B", (rank, O), kaiming_bound(rank, gain))
        self.A_RI = nn.Parameter(context.uniform("A", (rank, I), kaiming_bound(I, gain)))
        self.B_OR = nn.Parameter(B_RO.T.contiguous())
        self.d_R, self.b_O = nn.Parameter(context.full((rank,), d_initial)), nn.Parameter(context.full((O,)))
        self.dropout = context.dropout(lora_dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.b_O[:, None] * self.B_OR * self.d_R, self.A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """With the vectors at 1 it is LoRA's product: dividing them out of ΔW leaves B A."""
        dW_OI = self.weight(W_OI) - W_OI
        B_OR, A_RI = self.b_O[:, None] * self.B_OR, self.d_R[:, None] * self.A_RI
        torch.testing.assert_close(dW_OI, B_OR @ A_RI, rtol=1e-4, atol=1e-5)
