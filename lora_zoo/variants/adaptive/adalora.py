"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al., ICLR 2023)."""

import warnings
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import uncast
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.adalora import AdaLoraFormat
from lora_zoo.inits.random import orthonormal_rows
from lora_zoo.variants.adaptive.batched import PENALTIES, ByShape, deviation, views
from lora_zoo.variants.adaptive.budgeted import Budgeted
from lora_zoo.variants.adaptive.masking import Sensitivity, highest
from lora_zoo.variants.adaptive.schedule import CubicSchedule
from lora_zoo.variants.components import alive
from lora_zoo.variants.low_rank import Product


class Budget(AdapterHooks):
    """§3.2-3.3: keeps the triplets (P column, λ, Q row) that matter, model-wide, under a shrinking budget.

    `tinit` and `tfinal` are steps, or shares of the run if below 1. Where the paper and its code differ, the
    code is the default and the option offers the paper: `orth_reg=sum_squared`, `sensitivity=pre_step`.
    """

    packable = True  # its penalty reads the adapters' own parameters

    def __init__(
        self,
        adapters: Mapping[str, "AdaLoRA"],
        *,
        tinit: float = 0.1,
        tfinal: float = 0.5,
        deltaT: int = 1,
        beta1: float = 0.85,
        beta2: float = 0.85,
        orth_reg_weight: float = 0.1,
        orth_reg: Literal["mean_norm", "sum_squared"] = "mean_norm",
        sensitivity: Literal["post_step", "pre_step"] = "post_step",
    ) -> None:
        super().__init__(adapters)
        if not (deltaT >= 1 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and orth_reg_weight >= 0):
            needs = "needs deltaT >= 1, 0 <= beta1 < 1, 0 <= beta2 < 1 and orth_reg_weight >= 0"
            raise ValueError(f"adalora: {needs}; got {deltaT}, {beta1}, {beta2} and {orth_reg_weight}")
        self.sites = list(adapters.values())
        self.schedule, self.deltaT = CubicSchedule("adalora", tinit, tfinal), deltaT
        self.weight, self.penalty = orth_reg_weight, PENALTIES[orth_reg]
        self.pre_step = sensitivity == "pre_step"
        self.full, self.target = sum(len(a.E_R) for a in self.sites), sum(a.rank for a in self.sites)
        # Q's rows and P's columns, alike ones together: what is done to them takes an operation a shape.
        self.rows, self.columns = (ByShape([getattr(a, f) for a in self.sites]) for f in ("A_RI", "B_OR"))
        E: list[Tensor] = [a.E_R for a in self.sites]
        self.triplets = E + self.rows.tensors + self.columns.tensors
        self.sensitivity = Sensitivity(self.triplets, beta1, beta2)
        self.register_buffer("mask", torch.ones(self.full, dtype=torch.bool, device=E[0].device))

    def on_train_begin(self, total: int) -> None:
        self.schedule.check(total)
        self.to_adapters()

    def budget(self, progress: Progress) -> int:
        """Eq. 14, with the typing error of its denominator mended as in the official code."""
        return int(self.target + (self.full - self.target) * self.schedule.left(progress))

    def regularizer(self) -> Tensor:
        with uncast(self.sites[0].E_R.device):
            deviations = [deviation(Q_NRI) for Q_NRI in self.rows.stacked()]
            deviations += [deviation(P_NOR.mT) for P_NOR in self.columns.stacked()]
        return self.weight * self.penalty(torch.cat(deviations))

    def on_after_backward(self, progress: Progress) -> None:
        if self.pre_step:
            self.observe(progress)

    @torch.no_grad()
    def on_step_end(self, progress: Progress) -> None:
        if not self.pre_step:
            self.observe(progress)
        start, end = self.schedule.span(progress.total)
        due = progress.step > start and progress.step % self.deltaT == 0
        if progress.step == end or (progress.step < end and due):
            self.allocate(self.full - self.budget(progress))
        if progress.step >= end or due:
            E = self.triplets[: len(self.sites)]
            torch._foreach_mul_(E, views(self.mask.to(E[0].dtype), E))

    def observe(self, progress: Progress) -> None:
        """Eq. 8-10: sensitivity |w ∂L/∂w| of every entry, smoothed, and its uncertainty."""
        if progress.step < self.schedule.span(progress.total)[1]:
            self.sensitivity.observe()

    def allocate(self, surplus: int) -> None:
        """Eq. 11-12: mask the `surplus` triplets of lowest S = s(λ) + mean s(Q row) + mean s(P column)."""
        sizes = [self.full, self.rows.entries, self.columns.entries]
        E, Q, P = self.sensitivity.scores().split(sizes)
        scores = E + self.rows.means(Q, dim=2) + self.columns.means(P, dim=1)
        self.mask = highest(scores, lambda n: n - surplus)

    def on_train_end(self) -> None:
        if int(self.mask.sum()) > self.target:
            text = "adalora: on_step_end was not called to the end, the budget was never met"
            warnings.warn(text, stacklevel=2)

    def kept(self) -> Mapping[str, Tensor]:
        """§3.3: the triplets that the final budget has left, λ other than 0."""
        return {name: alive(adapter.E_R != 0) for name, adapter in self.adapters.items()}

    def ranks(self) -> Mapping[str, int]:
        """The triplets under the budget; λ says it only once it has left its start at 0."""
        masks = self.mask.cpu().split([len(a.E_R) for a in self.sites])
        return {name: int(mask.sum()) for name, mask in zip(self.adapters, masks, strict=True)}

    def law(self) -> None:
        assert sum(int(a.E_R.count_nonzero()) for a in self.sites) <= self.target

    mask: Tensor


@register("adalora")
class AdaLoRA(Budgeted, Product):
    """Eq. 3: ΔW = P Λ Q, an SVD's form. §4: b(0) = 1.5 b(T)."""

    paper = "arXiv:2303.10512"
    equation = "W' = W + (α/r₀) P diag(λ) Q"
    count = "(ceil(3 * R / 2) if init_r == 'auto' else init_r) * (O + I + 1)"
    peft = AdaLoraFormat()
    hooks = Budget
    inits = ("gaussian", "orthogonal")

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        init_r: int | Literal["auto"] = "auto",
        alpha: Alpha = "auto",
        init: str = "gaussian",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        first = self.used_rank({"rank": rank, "init_r": init_r})
        O, I = context.shape
        draws = (context.normal(factor, (first, side), 0.02) for factor, side in (("Q", I), ("P", O)))
        Q_RI, P_RO = (orthonormal_rows(draw) if init == "orthogonal" else draw for draw in draws)
        self.A_RI, self.B_OR = nn.Parameter(Q_RI), nn.Parameter(P_RO.T.contiguous())
        self.E_R = nn.Parameter(context.full((first,)))
        self.rank = rank
        self.scale = self.scale_of(alpha, first)  # it stays while triplets are pruned
        self.dropout = context.dropout(lora_dropout)

    @staticmethod
    def scaling(alpha: float, rank: int) -> float:
        return alpha / (rank + 1e-5)  # the official code's

    def components(self) -> int:
        return len(self.E_R)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.B_OR * self.E_R, self.A_RI
