"""Parameter-Efficient Transfer Learning with Diff Pruning (Guo, Rush & Kim, ACL 2021).

Letters: O out, I in; N all entries of all matrices.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.hooks import AdapterHooks, Groups, MakeOptimizer, Progress, split
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import register
from lora_zoo.variants.adaptive.masking import Masks

LOW, HIGH = -1.5, 1.5
"""The interval to which a gate's sigmoid is stretched before it is cut to [0, 1], §4.2."""
START = 5.0
"""Where every gate begins, in the official code: open in 97 of 100 draws."""


class SparseDiff(AdapterHooks):
    """§3: gates drawn anew in each step and a penalty on how many are open; then the greatest entries alone.

    After the share `fixed_from` of the steps the diff is cut to the `density` of all entries that has the
    greatest ones, and these learn on, without noise, gates at rest: the official scripts' fixed mask, as long
    as the search. At 1 the diff is cut at the end. The penalty is `l0_weight` times the expected number of
    entries that are not 0; its default is the official one, of 335 million entries, and that code counts
    entries and groups apart. Gates learn at `gate_lr` whatever the rate is.
    """

    fixed: Tensor
    packable = True  # its noise and its penalty are the adapters' own

    def __init__(
        self,
        adapters: Mapping[str, "DiffPruning"],
        *,
        density: float = 0.005,
        fixed_from: float = 0.5,
        l0_weight: float = 1.25e-7,
        gate_lr: float = 0.1,
    ) -> None:
        super().__init__(adapters)
        if not (0 < density <= 1 and 0 < fixed_from <= 1 and l0_weight >= 0 and gate_lr >= 0):
            raise ValueError(
                "diff_pruning needs 0 < density <= 1, 0 < fixed_from <= 1, l0_weight >= 0 and gate_lr >= 0; "
                f"got {density}, {fixed_from}, {l0_weight} and {gate_lr}"
            )
        self.masks = Masks({f"{name}.D_OI": site.D_OI for name, site in adapters.items()})
        self.sites = [adapters[name.removesuffix(".D_OI")] for name in self.masks.names]
        self.number = max(1, round(density * sum(site.D_OI.numel() for site in self.sites)))
        self.fixed_from, self.l0_weight, self.gate_lr = fixed_from, l0_weight, gate_lr
        self.last = math.inf
        self.register_buffer("fixed", torch.tensor(False))

    def on_train_begin(self, total: int) -> None:
        self.last = max(1, round(self.fixed_from * total))
        self.to_adapters()

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        own = {"lr": self.gate_lr, "weight_decay": 0.0}
        return split(named, "gate_OI", own, lr=lr, weight_decay=weight_decay)

    def optimizer(self, groups: Groups, make: MakeOptimizer) -> Optimizer:
        self.steps = make(groups)
        return self.steps

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        for name, site in self.adapters.items() if not self.fixed else ():
            source = generator("diff_pruning", self.seed, name, progress.step)
            drawn = torch.rand(site.D_OI.numel() + 1, generator=source).clamp(1e-4, 1 - 1e-4)
            site.noise = drawn.to(site.D_OI)
        try:
            yield
        finally:
            for site in self.sites:
                site.noise = None

    def regularizer(self) -> Tensor | float:
        if self.fixed:
            return 0.0
        return self.l0_weight * torch.stack([site.expected_entries() for site in self.sites]).sum()

    def on_after_backward(self, progress: Progress) -> None:
        for gate in (gate for site in self.sites if self.fixed for gate in site.gates()):
            gate.grad = None

    @torch.no_grad()
    def on_step_end(self, progress: Progress) -> None:
        if self.masks.skipped():
            return
        if self.fixed:
            self.masks.apply_()
        elif progress.step >= self.last:
            self.prune()
            self.fixed.fill_(True)
            for site in self.sites:  # as the official scripts, which begin anew
                self.steps.state.pop(site.D_OI, None)

    def on_train_end(self) -> None:
        self.prune()

    @torch.no_grad()
    def prune(self) -> None:
        """Set all of D to 0 but for the entries of the `number` greatest changes over all matrices."""
        if self.sites:
            sizes_N = torch.cat([site.diff().abs().flatten() for site in self.sites])
            self.masks.keep(sizes_N, lambda N: self.number)
            self.masks.apply_()

    def law(self) -> None:
        """Once the mask is fixed, no more than the share of entries is not 0."""
        assert not self.fixed or sum(int((site.D_OI != 0).sum()) for site in self.sites) <= self.number


@register("diff_pruning")
class DiffPruning(Adapter):
    """Eq. 4 and §3.2: a dense diff, under a hard-concrete gate on each entry and one on the whole matrix.

    Outside of training steps the gates are those without noise (arXiv:1712.01312, eq. 13), where the official
    code takes its last draw. The gates are not needed once training is over: a file could hold the entries
    that are left alone, and this one holds all.
    """

    title = "Diff pruning"
    paper = "arXiv:2012.07463"
    equation = "W' = W + g (G ⊙ D), gates g, G hard concrete, D pruned to a share of its entries"
    count = "2 * O * I + structured"
    hooks = SparseDiff

    def __init__(self, context: LayerContext, *, structured: bool = True) -> None:
        super().__init__(context)
        self.D_OI = nn.Parameter(context.full(context.shape))
        self.gate_OI = nn.Parameter(context.full(context.shape, START))
        self.group_gate_OI = nn.Parameter(context.full((1, 1), START)) if structured else None
        self.noise: Tensor | None = None

    def gates(self) -> list[nn.Parameter]:
        return [self.gate_OI] if self.group_gate_OI is None else [self.gate_OI, self.group_gate_OI]

    def diff(self) -> Tensor:
        """The update (O, I)."""
        u, N = self.noise, self.D_OI.numel()
        found_OI = self.D_OI * opened(self.gate_OI, None if u is None else u[:N].view_as(self.gate_OI))
        if self.group_gate_OI is None:
            return found_OI
        return found_OI * opened(self.group_gate_OI, None if u is None else u[N:].view(1, 1))

    def weight(self, W_OI: Tensor) -> Tensor:
        return W_OI + self.diff()

    def expected_entries(self) -> Tensor:
        """The expected number of entries whose gates are open."""
        shift = math.log(-LOW / HIGH)
        expected = torch.sigmoid(self.gate_OI - shift).sum()
        if self.group_gate_OI is None:
            return expected
        return expected * torch.sigmoid(self.group_gate_OI - shift).sum()

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """A gate is shut in as many draws as the penalty counts: u <= 1 - σ(α - log(-l/r))."""
        shut_OI = 1 - torch.sigmoid(self.gate_OI - math.log(-LOW / HIGH))
        assert not opened(self.gate_OI, shut_OI * 0.999).any()
        assert bool(opened(self.gate_OI, 1 - (1 - shut_OI) * 0.999).all())


def opened(gate: Tensor, noise: Tensor | None) -> Tensor:
    """The hard-concrete value in [0, 1] of gates at α, for uniform noise u, or at its median without."""
    logits = gate if noise is None else gate + torch.logit(noise)
    return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0, 1)
