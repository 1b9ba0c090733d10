"""SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters (He et al., EMNLP 2022).

Letters: O out, I in, R rank; N all entries of all factors.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lora_zoo.core.hooks import AdapterHooks, Pass, Progress
from lora_zoo.core.init import Init
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.adaptive.masking import Masks
from lora_zoo.variants.adaptive.pruning_scores import SCORES, hessian_gradient
from lora_zoo.variants.low_rank import Additive

Score = Literal["random", "erdos_renyi", "magnitude", "snip", "grasp", "synflow"]


class PrunedOnce(AdapterHooks):
    """Entries of the factors are scored once, early; the lowest are 0 from then on, and the others learn.

    `keep` is the share that is left, which the official code calls sparsity: n - ⌈(1 - keep) n⌉ of n entries,
    n those of all factors (`scope=global`) or of each (`local`, where that code rounds up). Scores are those
    of the first step after the share `warmup` of the run, and of its batch, where that code looks at much
    data before the first step. At LoRA's start B is 0, and so are all scores of it, and SNIP's and SynFlow's
    of A: while all scores of A, or of B, are 0 the next step is tried.
    """

    def __init__(
        self,
        adapters: Mapping[str, "SparseAdapter"],
        *,
        keep: float = 0.6,
        score: Score = "snip",
        scope: Literal["global", "local"] = "global",
        warmup: float = 0.01,
    ) -> None:
        super().__init__(adapters)
        if not (0 < keep <= 1 and 0 <= warmup < 1):
            raise ValueError(
                f"sparse_adapter needs 0 < keep <= 1 and 0 <= warmup < 1; got {keep} and {warmup}"
            )
        if score == "erdos_renyi" and scope == "local":
            raise ValueError(
                "sparse_adapter: score=erdos_renyi gives each factor a share of its own; use scope=global"
            )
        self.keep, self.score, self.warmup, self.first = keep, score, warmup, 1
        named = {f"{n}.{f}": getattr(a, f) for n, a in adapters.items() for f in ("A_RI", "B_OR")}
        self.masks = Masks(named, "matrix" if scope == "local" else "global")
        self.products: dict[int, Tensor] = {}

    def on_train_begin(self, total: int) -> None:
        """ValueError for GraSP where the model's attention has no second derivative."""
        self.first = 1 + round(self.warmup * total)
        self.to_adapters()
        attention = getattr(getattr(self.model, "config", None), "_attn_implementation", "eager")
        if self.score == "grasp" and attention != "eager":
            raise ValueError(
                f"sparse_adapter: score=grasp differentiates the gradient, which attention by "
                f"{attention} does not allow: give model.attn_implementation=eager"
            )

    @classmethod
    def gathers(cls, *, score: Score = "snip", **hyper: Any) -> str:
        return "with score=grasp differentiates the gradient of a batch's loss" if score == "grasp" else ""

    @property
    def fixed(self) -> bool:
        """True once entries are masked."""
        return not bool(self.masks.kept_N.all())

    def due(self, progress: Progress) -> bool:
        """True if this step's scores may choose what is masked."""
        return self.keep < 1 and progress.step >= self.first and not self.fixed

    def number(self, n: int) -> int:
        """The number of n entries that are kept, at least one."""
        return max(1, n - math.ceil((1 - self.keep) * n - 1e-9))

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        loss, outputs, extra = super().objective(once, progress)
        if self.score == "grasp" and self.due(progress):
            product_N, step = hessian_gradient(loss, self.masks.tensors), progress.step
            self.products = {step: self.products[step] + product_N if step in self.products else product_N}
        return loss, outputs, extra

    @torch.no_grad()
    def on_after_backward(self, progress: Progress) -> None:
        if self.due(progress):
            scores_N = SCORES[self.score](self)
            if self.tells(scores_N):
                self.masks.keep(scores_N, self.number)
        self.products = {}
        for tensor, kept in self.masks.pairs() if self.fixed else ():
            if tensor.grad is not None:
                tensor.grad.mul_(kept)

    def tells(self, scores_N: Tensor) -> bool:
        """True if neither factor has scores of 0 alone."""
        parts = scores_N.split([tensor.numel() for tensor in self.masks.tensors])
        told = {n.rpartition(".")[2] for n, part in zip(self.masks.names, parts, strict=True) if part.any()}
        return len(told) == 2

    def on_step_end(self, progress: Progress) -> None:
        if self.fixed and not self.masks.skipped():
            self.masks.apply_()

    def on_train_end(self) -> None:
        if self.keep < 1 and not self.fixed and self.number(len(self.masks.kept_N)) < len(self.masks.kept_N):
            text = f"sparse_adapter: no step had scores ({self.score}) of both factors; nothing was pruned"
            warnings.warn(text, stacklevel=2)

    def law(self) -> None:
        """Masked entries are 0, and exactly as many are kept as were asked for."""
        if not self.fixed:
            return
        assert not any(tensor[~kept].any() for tensor, kept in self.masks.pairs())
        if self.masks.scope == "global":
            assert int(self.masks.kept_N.sum()) == self.number(len(self.masks.kept_N))


@register("sparse_adapter")
class SparseAdapter(Additive):
    """LoRA whose factors are sparse; of rank r / keep it has the parameters of a dense one of rank r."""

    paper = "arXiv:2210.04284"
    equation = "W' = W + (α/r) (m_B ⊙ B) (m_A ⊙ A), masks m of ones and zeros"
    count = "R * (O + I)"
    hooks = PrunedOnce
    peft = LoraFormat()

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual  # masks would take from W' what the start took from W
