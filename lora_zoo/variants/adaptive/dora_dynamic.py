"""DoRA: Enhancing PEFT with Dynamic Rank Distribution (Mao et al., ACL 2024), not weight decomposition.

Shapes: O out, I in, R rank; N sites, K the components of all of them.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import uncast
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.init import Init
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.variants.adaptive.batched import ByShape
from lora_zoo.variants.adaptive.budgeted import Budgeted
from lora_zoo.variants.adaptive.gated import Gated, open_components
from lora_zoo.variants.adaptive.masking import Masks
from lora_zoo.variants.adaptive.schedule import CubicSchedule
from lora_zoo.variants.zero_core import ZeroCore

EPS = 1e-8
"""Added to the norm of an update, the official code's."""


class DynamicRanks(AdapterHooks):
    """§3.2-3.4: the components that contribute least to their own update go, over all matrices, in a window.

    A mean of each component's share of ‖ΔW‖ is kept (β), from the weights after each step. Every `deltaT`
    steps between `tinit` and `tfinal` before the end (steps, or shares of the run if below 1) the gates of
    the lowest are set to zero. As in the official code, a gate may grow again until the window ends, where
    the cut is final; with `revive=false` it may not. Where that code also cuts a component at the beginning,
    and all of equal scores, exactly the budget is cut. The penalty (DEM) ends with the window.
    """

    packable = True  # its penalty reads the adapters' own parameters
    shares_K: Tensor

    def __init__(
        self,
        adapters: Mapping[str, "DoRADynamic"],
        *,
        tinit: float = 0.15,
        tfinal: float = 0.5,
        deltaT: int = 100,
        beta: float = 0.9,
        dem_weight: float = 0.1,
        revive: bool = True,
    ) -> None:
        super().__init__(adapters)
        if not (deltaT >= 1 and 0 <= beta < 1 and dem_weight >= 0):
            needs = "needs deltaT >= 1, 0 <= beta < 1 and dem_weight >= 0"
            raise ValueError(f"dora_dynamic: {needs}; got {deltaT}, {beta} and {dem_weight}")
        sites = list(adapters.values())
        self.schedule, self.deltaT = CubicSchedule("dora_dynamic", tinit, tfinal), deltaT
        self.beta, self.dem_weight, self.revive = beta, dem_weight, revive
        self.full, self.target = sum(len(a.g_R) for a in sites), sum(a.rank for a in sites)
        self.masks = Masks({f"{name}.g_R": a.g_R for name, a in adapters.items()})
        self.rows, self.columns = (ByShape([getattr(a, f) for a in sites]) for f in ("A_RI", "B_OR"))
        self.register_buffer("shares_K", torch.zeros_like(self.masks.kept_N, dtype=sites[0].g_R.dtype))
        self.penalised = False

    def on_train_begin(self, total: int) -> None:
        self.schedule.check(total)
        self.to_adapters()

    def forward_context(self, progress: Progress) -> contextlib.AbstractContextManager[Any]:
        self.penalised = progress.step <= self.schedule.span(progress.total)[1]
        return contextlib.nullcontext()

    def regularizer(self) -> Tensor | float:
        """§3.4: the mean variance of the entries of a row of A, or of a column of B."""
        if not (self.penalised and self.dem_weight):
            return 0.0
        with uncast(self.shares_K.device):
            variances = [A_NRI.var(dim=2).flatten() for A_NRI in self.rows.stacked()]
            variances += [B_NOR.var(dim=1).flatten() for B_NOR in self.columns.stacked()]
        return self.dem_weight * torch.cat(variances).mean()

    @torch.no_grad()
    def on_step_end(self, progress: Progress) -> None:
        if self.masks.skipped():
            return
        start, end = self.schedule.span(progress.total)
        if progress.step <= end:
            self.shares_K.lerp_(self.shares().to(self.shares_K.dtype), 1 - self.beta)
        if progress.step >= end or (progress.step >= start and not (progress.step - start) % self.deltaT):
            self.cut(int((self.full - self.target) * self.schedule.gone(progress)))
        elif not self.revive:
            self.masks.apply_()

    def cut(self, number: int) -> None:
        """Set the gates of the `number` components of lowest share to zero."""
        scores_K = self.shares_K if self.revive else self.shares_K.where(self.masks.kept_N, -1.0)
        self.masks.keep(scores_K, lambda K: K - number)
        self.masks.apply_()

    def shares(self) -> Tensor:
        """Eq. 4: ‖c b aᵀ‖ / ‖ΔW‖ of each component (K), as the masks order them, from A Aᵀ and BᵀB alone."""
        with uncast(self.shares_K.device):
            of_A = self.rows.each(lambda A_NRI: A_NRI @ A_NRI.mT)
            of_B = self.columns.each(lambda B_NOR: B_NOR.mT @ B_NOR)
        grams = ByShape([A_RR * B_RR for A_RR, B_RR in zip(of_A, of_B, strict=True)])
        found = []
        for g_NR, gram_NRR in zip(self.masks.by_shape.stacked(), grams.stacked(), strict=True):
            each_NR = g_NR.abs() * gram_NRR.diagonal(dim1=1, dim2=2).sqrt()
            whole_N = torch.einsum("nr,nrq,nq->n", g_NR, gram_NRR, g_NR).clamp_min(0).sqrt()
            found.append((each_NR / (whole_N[:, None] + EPS)).flatten())
        return torch.cat(found)

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Cut once more, as all steps since the window's end may have been skipped."""
        self.cut(self.full - self.target)

    def kept(self) -> Mapping[str, Tensor]:
        return open_components(self.adapters)

    def ranks(self) -> Mapping[str, int]:
        """The components under the budget; a gate at 0 may be one that has not learned yet."""
        return {name.removesuffix(".g_R"): int(kept.sum()) for name, kept in self.masks.by_name().items()}

    def law(self) -> None:
        """The budget is met exactly, and every gate that was cut is zero."""
        assert int(self.masks.kept_N.sum()) == self.target
        assert not any(g_R[~kept_R].any() for g_R, kept_R in self.masks.pairs())


@register("dora_dynamic")
class DoRADynamic(Budgeted, Gated, ZeroCore):
    """Eq. 2-3: LoRA as a sum of components c b aᵀ, both factors random as torch's Kaiming, all c at zero."""

    title = "DoRA (dynamic ranks)"
    paper = "arXiv:2405.17357"
    equation = "W' = W + (α/r₀) B diag(c) A, c pruned to r of r₀ on average"
    count = "(ceil(3 * R / 2) if init_r == 'auto' else init_r) * (O + I + 1)"
    hooks = DynamicRanks
    paper_alpha = 8.0

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        init_r: int | Literal["auto"] = "auto",
        alpha: Alpha = "auto",
        lora_dropout: float = 0.0,
    ) -> None:
        first = self.used_rank({"rank": rank, "init_r": init_r})
        super().__init__(context, rank=first, alpha=alpha, lora_dropout=lora_dropout)
        self.rank, self.g_R = rank, torch.nn.Parameter(context.full((first,)))

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return False  # as of every core that begins at zero

    @staticmethod
    def drawn(context: LayerContext, rank: int) -> tuple[Tensor, Tensor]:
        (O, I), gain = context.shape, math.sqrt(2)
        A_RI = context.uniform("A", (rank, I), kaiming_bound(I, gain))
        return A_RI, context.uniform("B", (rank, O), kaiming_bound(rank, gain))
