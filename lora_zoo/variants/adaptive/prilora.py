"""PRILoRA: Pruned and Rank-Increasing Low-Rank Adaptation (Benedek & Wolf, Findings of EACL 2024).

Shapes: O out, I in, R rank; N the inputs of all sites.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.host import Host, LayerHost
from lora_zoo.core.init import Init
from lora_zoo.core.recomputation import in_backward
from lora_zoo.core.variants import register
from lora_zoo.variants.adaptive.batched import views
from lora_zoo.variants.adaptive.masking import Masks, share_of
from lora_zoo.variants.low_rank import Additive


class InputWeightedPruning(AdapterHooks):
    """§3.2: every `deltaT` steps each row of A keeps the `density` of its entries of highest |A| ‖x‖.

    ‖x‖ is of each input, the root of its mean square over a step's positions, padding among them; of it a
    mean is kept (β, from 0). Entries that were cut learn on from zero until the next time, and the last cut
    is made when training ends; with `revive=false` they stay zero. No code is published: β, and that the
    cut entries learn on, which "throughout the training process" needs, are settled here.
    """

    norms_N: Tensor

    def __init__(
        self,
        adapters: Mapping[str, "PRILoRA"],
        *,
        density: float = 0.5,
        deltaT: int = 40,
        beta: float = 0.9,
        revive: bool = True,
    ) -> None:
        super().__init__(adapters)
        if not (0 < density <= 1 and deltaT >= 1 and 0 <= beta < 1):
            needs = "prilora needs 0 < density <= 1, deltaT >= 1 and 0 <= beta < 1"
            raise ValueError(f"{needs}; got {density}, {deltaT} and {beta}")
        self.density, self.deltaT, self.beta, self.revive = density, deltaT, beta, revive
        self.masks = Masks({f"{name}.A_RI": a.A_RI for name, a in adapters.items()}, "row")
        self.sites = [adapters[name.removesuffix(".A_RI")] for name in self.masks.names]
        empty = [A_RI.detach().new_zeros(A_RI.shape[1]) for A_RI in self.masks.tensors]
        self.register_buffer("norms_N", torch.cat(empty))

    def on_train_begin(self, total: int) -> None:
        self.to(self.masks.tensors[0].device)

    def norms(self) -> list[Tensor]:
        """The mean ‖x‖ of each input (I) of each site."""
        return views(self.norms_N, [A_RI[0] for A_RI in self.masks.tensors])

    @torch.no_grad()
    def on_step_end(self, progress: Progress) -> None:
        heard = [site.heard(before_I) for site, before_I in zip(self.sites, self.norms(), strict=True)]
        if self.masks.skipped():
            return
        self.norms_N.lerp_(torch.cat(heard), 1 - self.beta)
        if progress.step % self.deltaT == 0:
            self.prune()
        elif not self.revive:
            self.masks.apply_()

    @torch.no_grad()
    def prune(self) -> None:
        """Cut all but ⌈density I⌉ entries of each row of A."""
        weighted = torch._foreach_mul([A_RI.abs() for A_RI in self.masks.tensors], self.norms())
        self.masks.keep(torch.cat([scores_RI.flatten() for scores_RI in weighted]), share_of(self.density))
        self.masks.apply_()

    def on_train_end(self) -> None:
        self.prune()

    def law(self) -> None:
        """Each row of A has exactly its share left, and nothing else."""
        for A_RI, kept_RI in self.masks.pairs():
            assert bool((kept_RI.sum(1) == share_of(self.density)(A_RI.shape[1])).all())
            assert not A_RI[~kept_RI].any()


@register("prilora")
class PRILoRA(Additive):
    """LoRA's forward pass, which hears its inputs; the ranks that grow with depth are a `rank_pattern`."""

    paper = "arXiv:2401.11316"
    equation = "W' = W + (α/r) B A, rows of A half pruned by |A| ‖x‖, r growing with depth"
    count = "R * (O + I)"
    hooks = InputWeightedPruning

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.squares_I, self.positions = torch.zeros(()), 0

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual  # what is subtracted would not be pruned

    @classmethod
    def unfit(cls, host: Host, hyper: Mapping[str, Any]) -> str | None:
        if not (host.dense and host.sees_input):
            return "it is scored by the inputs of a linear layer, and it has none"
        return super().unfit(host, hyper)

    def output(self, x: Tensor, host: LayerHost) -> Tensor:
        if self.training and not in_backward():
            wide = x.detach().reshape(-1, x.shape[-1]).to(self.A_RI.dtype)
            self.squares_I, self.positions = self.squares_I + wide.square().sum(0), self.positions + len(wide)
        return super().output(x, host)

    def heard(self, otherwise_I: Tensor) -> Tensor:
        """The root mean square of each input (I) since the last time, or `otherwise_I` where none came."""
        found_I = (self.squares_I / self.positions).sqrt() if self.positions else otherwise_I
        self.squares_I, self.positions = torch.zeros(()), 0
        return found_I

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """An input that no row of A keeps changes nothing."""
        assert not self.update()[:, (self.A_RI == 0).all(0)].any()
