"""LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning (Zhang et al., Findings 2024).

Shapes: O out, I in, R rank; G groups of a structure (heads, channels).
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dtypes import uncast, wide
from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.injection.layers import layer_of
from lora_zoo.injection.structures import Structure, find_structures
from lora_zoo.variants.adaptive.schedule import CubicSchedule
from lora_zoo.variants.low_rank import LowRank


class StructuredPruning(AdapterHooks):
    """Heads and channels of the base whose scores are lowest go, the same share of each structure's.

    The share that is gone rises by the cubic schedule to `ratio`, every `prune_freq` steps and at its end,
    before which the official code stops. `tinit` and `tfinal` are steps, or shares of the run if below 1. The
    first layers (the share `first_spared`) and the last `last_spared` stay whole, as in that code; with both
    0 all layers lose as many, which a model's configuration can hold. Heads that share their keys go
    together, where that code takes all models to have a key for each head.

    Heads go where `o` is adapted, channels where `down` is: their columns are what is masked. Scores are of
    the adapted matrices, from gradients before clipping. Experts stay whole.
    """

    score_G: Tensor

    def __init__(
        self,
        adapters: Mapping[str, "LoRAPrune"],
        *,
        ratio: float = 0.5,
        tinit: float = 0.1,
        tfinal: float = 0.1,
        prune_freq: int = 10,
        beta: float = 0.9,
        first_spared: float = 0.1,
        last_spared: int = 1,
    ) -> None:
        super().__init__(adapters)
        if not (0 <= ratio < 1 and prune_freq >= 1 and 0 <= beta < 1):
            needs = "needs 0 <= ratio < 1, prune_freq >= 1 and 0 <= beta < 1"
            raise ValueError(f"lora_prune {needs}; got {ratio}, {prune_freq} and {beta}")
        if not (0 <= first_spared <= 1 and last_spared >= 0):
            needs = "needs 0 <= first_spared <= 1 and last_spared >= 0"
            raise ValueError(f"lora_prune {needs}; got {first_spared} and {last_spared}")
        self.ratio, self.prune_freq, self.beta = ratio, prune_freq, beta
        self.spared = first_spared, last_spared
        self.schedule = CubicSchedule("lora_prune", tinit, tfinal)

    def attach(self, model: Any, matrices: Mapping[str, Any], **about: Any) -> None:
        super().attach(model, matrices, **about)
        whole = find_structures(model)
        adapted = [s for s in whole if s.reader.name in self.adapters]
        self.structures = [s for s in adapted if not self.is_spared(s, whole)]
        like = next((a.A_RI for a in self.adapters.values()), torch.empty(0))
        self.register_buffer("score_G", like.detach().new_zeros(sum(s.groups for s in self.structures)))

    def is_spared(self, structure: Structure, whole: list[Structure]) -> bool:
        """True in the first and the last layers of its stack; False outside of all layers."""
        inside = layer_of(structure.reader.name)
        if inside is None:
            return False
        places = [layer_of(other.reader.name) for other in whole]
        count = 1 + max(place[1] for place in places if place and place[0] == inside[0])
        return inside[1] < int(self.spared[0] * count + 1e-9) or inside[1] >= count - self.spared[1]

    def on_train_begin(self, total: int) -> None:
        """ValueError where a model of transformers' has no structures; a warning where all are spared."""
        self.schedule.check(total)
        self.to_adapters()
        known = hasattr(getattr(self.model, "config", None), "_attn_implementation")
        if self.structures or not known or not self.ratio:
            return
        if not find_structures(self.model):
            raise ValueError(
                "lora_prune finds no heads and no channels in this model: it knows them by layers with the "
                "roles q, k, v and o, or up and down, which are no experts"
            )
        warnings.warn(
            "lora_prune prunes nothing: it needs `o` (heads) or `down` (channels) among target_modules, in "
            f"layers that first_spared={self.spared[0]} and last_spared={self.spared[1]} leave",
            stacklevel=2,
        )

    @torch.no_grad()
    def on_after_backward(self, progress: Progress) -> None:
        """Scores follow the sums over each group, those of a matrix divided by their L2 norm."""
        for structure, score_G in zip(self.structures, self.scores(), strict=True):
            adapted = [m for m in structure.members if m.name in self.adapters]
            if all(self.adapters[m.name].B_OR.grad is not None for m in adapted):
                score_G.mul_(self.beta).add_((1 - self.beta) * sum(self.found(structure, m) for m in adapted))

    def scores(self) -> tuple[Tensor, ...]:
        """The smoothed score (G,) of each structure, views of the buffer."""
        return self.score_G.split([structure.groups for structure in self.structures])

    def found(self, structure: Structure, member: Any) -> Tensor:
        """A member's part of the scores of the groups (G,), of norm 1."""
        adapter, W_OI = self.adapters[member.name], wide(member.host.matrix())
        with uncast(W_OI.device):
            sums_G = structure.by_group(member, adapter.sensitivity(W_OI)).sum(dim=1)
        return (sums_G / (sums_G.norm() + 1e-8)).to(self.score_G)

    @torch.no_grad()
    def on_step_end(self, progress: Progress) -> None:
        late = progress.step >= self.schedule.span(progress.total)[1]
        skipped = all(a.B_OR.grad is None for a in self.adapters.values())
        if skipped or not (late or progress.step % self.prune_freq == 0):
            return
        share = self.ratio * (1 - self.schedule.left(progress))
        for structure, score_G in zip(self.structures, self.scores(), strict=True):
            self.prune(structure, score_G, int(share * structure.groups + 1e-9))

    def prune(self, structure: Structure, score_G: Tensor, number: int) -> None:
        """Mask the `number` groups of lowest score, those first that are masked."""
        kept_I = self.adapters[structure.reader.name].kept_I
        gone_G = kept_I.view(structure.groups, -1)[:, 0] == 0
        lowest = score_G.to(kept_I.device).masked_fill(gone_G, -1.0).argsort(stable=True)[:number]
        kept_I.view(structure.groups, -1)[lowest] = 0

    def law(self) -> None:
        """As many groups are gone as the ratio says, at the end, and a group as a whole."""
        for structure in self.structures:
            kept_I = self.adapters[structure.reader.name].kept_I.view(structure.groups, -1)
            assert bool((kept_I == kept_I[:, :1]).all())
            assert int((kept_I[:, 0] == 0).sum()) == int(self.ratio * structure.groups + 1e-9)


@register("lora_prune")
class LoRAPrune(LowRank):
    """LoRA by whose own gradients heads and channels of the base are chosen, and masked.

    A group is masked where it is read: in columns of `o` or `down`. What makes it (rows of q, k, v, up, gate,
    and their biases) then has no effect and no gradient; the official code masks that instead, which is the
    same function only where activations map 0 to 0. `python -m lora_zoo.merge --slice` takes both away.
    """

    paper = "arXiv:2305.18403"
    equation = "W' = (W + (α/r) B A) diag(m), m ∈ {0, 1} over heads of o and channels of down"
    count = "R * (O + I)"
    hooks = StructuredPruning
    targets = ("q", "k", "v", "o", "gate", "up", "down")
    kernel = "additive"
    paper_alpha = 16.0
    kept_I: Tensor | None

    def __init__(self, context: LayerContext, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        host = context.host
        reads = context.role in ("o", "down") and (host.dense or not host.sees_input)
        self.register_buffer("kept_I", context.full(context.shape[1:], 1.0) if reads else None)
        if reads:
            self.fused = None  # the kernel knows no mask

    def weight(self, W_OI: Tensor) -> Tensor:
        whole_OI = W_OI + self.update()
        return whole_OI if self.kept_I is None else whole_OI * self.kept_I.to(whole_OI.dtype)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        kept_I = self.kept_I
        x = x if kept_I is None else x * kept_I.to(x.dtype)
        y = host.base(x) if kept_I is None else host.plus_bias(host.product(x))
        return y + host.low_rank(host.dropped(x, self.dropout), *self.branch()).to(y.dtype)

    def sensitivity(self, W_OI: Tensor) -> Tensor:
        """|Ĝ ⊙ (W + s B A)| (O, I), where Ĝ is what a gradient step of length 1 takes from B A."""
        dA_RI, dB_OR = self.A_RI.grad, self.B_OR.grad
        assert dA_RI is not None and dB_OR is not None
        G_OI = dB_OR @ self.A_RI + self.B_OR @ dA_RI - dB_OR @ dA_RI
        return (G_OI * (W_OI + self.update())).abs()

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The columns that are gone are zero; in the others it is LoRA."""
        kept_I = torch.ones_like(W_OI[0]) if self.kept_I is None else self.kept_I
        torch.testing.assert_close(self.weight(W_OI), (W_OI + self.update()) * kept_I)
