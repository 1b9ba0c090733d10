"""PRILoRA: Pruned and Rank-Increasing Low-Rank Adaptation (Benedek & Wolf, Findings of EACL 2024).

Shapes: O out, I in, R rank; N the inputs of all sites.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.host import Host
from lora_zoo.core.init import Init
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
        self.sites = [name.removesuffix(".A_RI") for name in self.masks.names]
        self._heard: dict[str, tuple[Tensor, int]] = {}
        empty = [A_RI.detach().new_zeros(A_RI.shape[1]) for A_RI in self.masks.tensors]
        self.register_buffer("norms_N", torch.cat(empty) if empty else torch.empty(0))

    @classmethod
    def gathers(cls, **hyper: Any) -> str:
        return "prunes by the norms of its layers' inputs"

    def on_train_begin(self, total: int) -> None:
        self.to_adapters()

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        """Inside, the target layers' inputs are heard; the backward pass, which may recompute, is outside."""
        with contextlib.ExitStack() as stack:
            for site in self.sites:
                hear = partial(self._hear, site)
                stack.enter_context(self.matrices[site].host.layer.register_forward_pre_hook(hear))
            yield

    def _hear(self, site: str, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x_NI = arguments[0].detach().flatten(0, -2).to(self.norms_N.dtype)
        squares_I, positions = self._heard.get(site, (0.0, 0))
        self._heard[site] = squares_I + x_NI.square().sum(0), positions + len(x_NI)

    def norms(self) -> list[Tensor]:
        """The mean ‖x‖ of each input (I) of each site."""
        return views(self.norms_N, [A_RI[0] for A_RI in self.masks.tensors])

    @torch.no_grad()
    def on_step_end(self, progress: Progress) -> None:
        heard, self._heard = self._heard, {}
        if self.masks.skipped():
            return
        for site, mean_I in zip(self.sites, self.norms(), strict=True):
            if site in heard:  # not where no pass reached the layer
                squares_I, positions = heard[site]
                mean_I.lerp_((squares_I / positions).sqrt(), 1 - self.beta)
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
    """LoRA's forward pass; the ranks that grow with depth are a `rank_pattern`."""

    paper = "arXiv:2401.11316"
    equation = "W' = W + (α/r) B A, each row of A pruned by |A| ‖x‖"
    count = "R * (O + I)"
    hooks = InputWeightedPruning

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return not init.residual  # what is subtracted would not be pruned

    @classmethod
    def unfit(cls, host: Host, hyper: Mapping[str, Any]) -> str | None:
        if not (host.dense and host.sees_input):
            return "it is scored by the inputs of a linear layer, and it has none"
        return super().unfit(host, hyper)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """An input that no row of A keeps changes nothing."""
        assert not self.update()[:, (self.A_RI == 0).all(0)].any()
