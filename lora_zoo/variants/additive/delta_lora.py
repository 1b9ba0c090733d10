"""Delta-LoRA: Fine-Tuning High-Rank Parameters with the Delta of Low-Rank Matrices (Zi et al., 2023).

Shapes: O out, I in, R rank. K marks the factors of the step from which W moves.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Additive


class MovingWeight(AdapterHooks):
    """Algorithm 1: after `start` steps (a share of the run, if below 1), each step moves W by λ s Δ(B A).

    The gradients of A and B are those of LoRA at the moved W. `update_ratio` is λ. The paper's start is 500
    steps; its `t > K` counts from 0, and so waits for one step more.
    """

    def __init__(
        self, adapters: Mapping[str, "DeltaLoRA"], *, update_ratio: float = 2.0, start: float = 0.1
    ) -> None:
        super().__init__(adapters)
        if not 0 <= update_ratio < float("inf") or start < 0:
            given = f"{update_ratio} and {start}"
            raise ValueError(f"delta_lora: update_ratio >= 0 and start >= 0 are needed; got {given}")
        self.update_ratio, self.start = update_ratio, start

    def on_train_begin(self, total: int) -> None:
        """ValueError where W would never move."""
        self.step = round(self.start * total) if self.start < 1 else int(self.start)
        if self.step >= total:
            raise ValueError(f"delta_lora: start={self.start} leaves none of the {total} steps to move W in")
        if self.step == 0 and not any(adapter.ratio for adapter in self.adapters.values()):
            self._begin()

    @torch.no_grad()
    def on_after_backward(self, progress: Progress) -> None:
        for adapter in self.adapters.values():
            for p in (adapter.A_RI, adapter.B_OR):
                if p.grad is not None:
                    p.grad /= 1 + adapter.ratio.to(p)

    def on_step_end(self, progress: Progress) -> None:
        if progress.step == self.step:
            self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        for adapter in self.adapters.values():
            adapter.AK_RI.copy_(adapter.A_RI)
            adapter.BK_OR.copy_(adapter.B_OR)
            adapter.ratio.fill_(self.update_ratio)


@register("delta_lora")
class DeltaLoRA(Additive):
    """The steps of W telescope (C-33), so that two more factors hold what W has moved, and W itself rests.

    As each step adds λ s (B' A' - B A), all from step K to T add λ s (B_T A_T - B_K A_K). There is no
    dropout: only then is ∂L/∂W that of B A, on the same x (§3.2).
    """

    title = "Delta-LoRA"
    paper = "arXiv:2309.02411"
    equation = "W' = W + (1 + λ) s B A - λ s B_K A_K, λ = 0 up to step K"
    count = "R * (O + I)"
    hooks = MovingWeight

    AK_RI: Tensor
    BK_OR: Tensor
    ratio: Tensor

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        init: str = "kaiming",
    ) -> None:
        super().__init__(context, rank=rank, alpha=alpha, init=init)
        self.register_buffer("AK_RI", torch.zeros_like(self.A_RI))
        self.register_buffer("BK_OR", torch.zeros_like(self.B_OR))
        self.register_buffer("ratio", self.A_RI.new_zeros(1))

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual  # no source says what moves with a start taken from W

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        """((1 + λ) s B, A), and what had been learned when W began to move: (-λ s B_K, A_K)."""
        learning = FactorPair((1 + self.ratio) * self.scale * self.B_OR, self.A_RI)
        return learning, FactorPair(-self.ratio * self.scale * self.BK_OR, self.AK_RI)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Three moves of W by λ s Δ(B A), one after the other, are what the frozen factors say."""
        own, moved_OI, product_OI = copy.deepcopy(self), W_OI.clone(), self.B_OR @ self.A_RI
        own.AK_RI.copy_(self.A_RI), own.BK_OR.copy_(self.B_OR), own.ratio.fill_(0.5)
        for step in (1.1, 0.7, -0.3):
            own.A_RI.mul_(step), own.B_OR.add_(own.B_OR.roll(1, 0) * step)
            now_OI = own.B_OR @ own.A_RI
            moved_OI += 0.5 * self.scale * (now_OI - product_OI).to(W_OI)
            product_OI = now_OI
        expected_OI = moved_OI + (self.scale * product_OI).to(W_OI)
        torch.testing.assert_close(own.weight(W_OI), expected_OI, rtol=1e-4, atol=1e-5, check_dtype=False)
