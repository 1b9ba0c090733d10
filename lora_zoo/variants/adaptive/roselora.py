"""RoseLoRA: Row and Column-wise Sparse Low-rank Adaptation (Wang et al., EMNLP 2024).

Shapes: O out, I in, R rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.variants.adaptive.masking import Masks, Sensitivity, share_of
from lora_zoo.variants.adaptive.schedule import CubicSchedule
from lora_zoo.variants.low_rank import Additive


class RowColumnPruning(AdapterHooks):
    """§3.2-3.3: every row of A and every column of B keeps the entries of highest smoothed sensitivity.

    The share that is kept falls from 1 after `tinit` to `density` at `tfinal` before the end (steps, or
    shares of the run if below 1; the defaults are a re-implementation's, as no official code is published).
    Entries are chosen anew after each step: one that was cut can come back where others lose theirs.
    """

    def __init__(
        self,
        adapters: Mapping[str, "RoseLoRA"],
        *,
        density: float = 0.05,
        tinit: float = 0.1,
        tfinal: float = 0.2,
        beta: float = 0.8,
    ) -> None:
        super().__init__(adapters)
        if not (0 < density <= 1 and 0 <= beta < 1):
            raise ValueError(f"roselora needs 0 < density <= 1 and 0 <= beta < 1; got {density} and {beta}")
        self.density, self.schedule = density, CubicSchedule("roselora", tinit, tfinal)
        self.rows = Masks({f"{name}.A_RI": a.A_RI for name, a in adapters.items()}, "row")
        self.columns = Masks({f"{name}.B_OR": a.B_OR for name, a in adapters.items()}, "column")
        self.of_rows, self.of_columns = (Sensitivity(m.tensors, beta) for m in (self.rows, self.columns))

    def on_train_begin(self, total: int) -> None:
        self.schedule.check(total)
        self.to_adapters()

    def on_after_backward(self, progress: Progress) -> None:
        self.of_rows.observe()
        self.of_columns.observe()

    def on_step_end(self, progress: Progress) -> None:
        if not self.rows.skipped():
            self.prune(self.density + (1 - self.density) * self.schedule.left(progress))

    def prune(self, share: float) -> None:
        """Cut all but ⌈share n⌉ entries of each row of A and column of B."""
        for masks, sensitivity in ((self.rows, self.of_rows), (self.columns, self.of_columns)):
            masks.keep(sensitivity.scores(), share_of(share))
            masks.apply_()

    def on_train_end(self) -> None:
        self.prune(self.density)

    def law(self) -> None:
        """Each row of A and column of B has exactly its share left, and nothing else."""
        kept = share_of(self.density)
        for A_RI, kept_RI in self.rows.pairs():
            assert bool((kept_RI.sum(1) == kept(A_RI.shape[1])).all()) and not A_RI[~kept_RI].any()
        for B_OR, kept_OR in self.columns.pairs():
            assert bool((kept_OR.sum(0) == kept(len(B_OR))).all()) and not B_OR[~kept_OR].any()


@register("roselora")
class RoseLoRA(Additive):
    """LoRA's forward pass; with sparse factors ΔW is sparse, which a product of dense ones is not."""

    paper = "arXiv:2406.10777"
    equation = "W' = W + (α/r) B A, rows of A and columns of B sparse"
    count = "R * (O + I)"
    hooks = RowColumnPruning

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual  # what is subtracted would not be sparse

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is zero wherever no component has both its row and its column."""
        reached_OI = (self.B_OR != 0).to(W_OI) @ (self.A_RI != 0).to(W_OI) > 0
        assert not self.update()[~reached_OI].any()
