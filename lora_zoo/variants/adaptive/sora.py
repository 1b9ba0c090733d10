"""SoRA: Sparse Low-rank Adaptation of Pre-trained Language Models (Ding et al., EMNLP 2023)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink
from torch.optim import Optimizer

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import AdapterHooks, Groups, MakeOptimizer, split
from lora_zoo.core.variants import register
from lora_zoo.variants.adaptive.gated import Gated, open_components
from lora_zoo.variants.low_rank import Additive


class Proximal(AdapterHooks):
    """§3.2: each optimiser step of a gate is followed by the proximal step of η λ |g|, which makes zeros.

    η is the step's learning rate, λ is `l1_weight`: with the official script's η = 8e-4 its default is that
    script's threshold, 3e-4. Its code shrinks by that and then zeroes what is below it, a dead zone twice as
    wide; this is the paper's operator.
    """

    def __init__(self, adapters: Mapping[str, "SoRA"], *, l1_weight: float = 0.375) -> None:
        super().__init__(adapters)
        if l1_weight < 0:
            raise ValueError(f"sora: l1_weight must be 0 or more; got {l1_weight}")
        self.l1_weight = l1_weight

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        own = {"weight_decay": 0.0, "l1_weight": self.l1_weight}
        return split(named, ".g_R", own, lr=lr, weight_decay=weight_decay)

    def optimizer(self, groups: Groups, make: MakeOptimizer) -> Optimizer:
        optimizer = make(groups)
        optimizer.register_step_post_hook(shrink)
        return optimizer

    def kept(self) -> Mapping[str, Tensor]:
        """§3.2: the components whose gate is not zero."""
        return open_components(self.adapters)

    def law(self) -> None:
        """The step is the minimiser of (x - g)² / 2 + η λ |x|: no x beside it is better."""
        threshold = self.l1_weight
        for g_R in (adapter.g_R.detach().double() for adapter in self.adapters.values()):
            x_R = softshrink(g_R, threshold)
            best_R = (x_R - g_R).square() / 2 + threshold * x_R.abs()
            for other_R in (x_R - 1e-3, x_R + 1e-3, torch.zeros_like(x_R)):
                assert bool((best_R <= (other_R - g_R).square() / 2 + threshold * other_R.abs()).all())


@torch.no_grad()
def shrink(optimizer: Optimizer, *_: Any) -> None:
    """Take the proximal step in every group that has an `l1_weight`."""
    for group in optimizer.param_groups:
        for p in group["params"] if "l1_weight" in group else ():
            if p.grad is not None:  # a step that is skipped has no gradients
                p.copy_(softshrink(p, group["l1_weight"] * group["lr"]))


@register("sora")
class SoRA(Gated, Additive):
    """Eq. 4: LoRA with a gate g, drawn from N(0, 1), between its factors."""

    paper = "arXiv:2311.11696"
    equation = "W' = W + (α/r) B diag(g) A, g sparse"
    count = "R * (O + I + 1)"
    hooks = Proximal

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.g_R = nn.Parameter(context.normal("g", (self.rank,), 1.0))
