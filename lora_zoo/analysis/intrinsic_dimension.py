"""Intrinsic dimension: how few directions of the parameters a task needs (Li et al., 2018; 2012.13255).

subspace = RandomSubspace(model, ["model.layers.0.self_attn.q_proj.weight"], dimension=100)
loss = subspace(input_ids=ids, labels=ids).loss       # θ = θ₀ + P θ_d
torch.optim.Adam(subspace.parameters(), lr=1e-2)      # θ_d alone, 100 numbers; model stays as it is
d90({10: 0.31, 100: 0.88, 1000: 0.93}, full=0.95)     # 100

Letters: D parameters that move, d dimension of the subspace.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

LARGEST = 2**29
"""Numbers of a dense P (2 GiB in float32)."""
PART = 0.9


@final
class RandomSubspace(nn.Module):
    """A frozen model of which the parameters `names` move in `dimension` random directions.

    Trainable is `theta` (d,), zero at first; P (D, d) is Gaussian with rows of expected norm 1, drawn from
    `seed` and not stored in a state_dict. ValueError for a name or dimension that cannot be, and for a P that
    would be larger than 2²⁹ numbers.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], dimension: int, *, seed: int = 0) -> None:
        super().__init__()
        known = dict(model.named_parameters())
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"the model has no parameter {missing[0]!r}; named_parameters() lists them")
        D = sum(known[name].numel() for name in names)
        if not 0 < dimension <= D:
            raise ValueError(f"dimension={dimension} of a subspace of {D:,} parameters; it must be in 1..{D}")
        if D * dimension > LARGEST:
            raise ValueError(
                f"P would hold {D:,} x {dimension:,} numbers, more than {LARGEST:,}; take fewer parameters"
            )
        source = torch.Generator().manual_seed(seed)
        self._model = (model.requires_grad_(False),)  # no submodule: its parameters are not ours to train
        self.theta = nn.Parameter(torch.zeros(dimension))
        for number, name in enumerate(names):
            drawn = torch.randn(known[name].numel(), dimension, generator=source) / math.sqrt(dimension)
            self.register_buffer(f"P{number}", drawn, persistent=False)
        self.names = list(names)

    def moved_parameters(self) -> dict[str, Tensor]:
        """The moved parameters by name, θ₀ + P θ_d in their own shapes."""
        base = dict(self._model[0].named_parameters())
        moved = {}
        for number, name in enumerate(self.names):
            P_Dd = self.get_buffer(f"P{number}")
            step = (P_Dd @ self.theta).view(base[name].shape)
            moved[name] = base[name] + step.to(base[name])
        return moved

    def forward(self, *arguments: Any, **more: Any) -> Any:
        return torch.func.functional_call(self._model[0], self.moved_parameters(), arguments, more)


def d90(scores: Mapping[int, float], full: float, part: float = PART) -> int | None:
    """The least dimension from which on every score is at least `part` of full fine-tuning's, or None.

    `scores`: dimension -> score, greater is better. ValueError unless `full` is positive.
    """
    if full <= 0:
        raise ValueError(f"a part of a score is meant of a positive one; full fine-tuning has {full}")
    reached = None
    for dimension in sorted(scores, reverse=True):
        if scores[dimension] < part * full:
            break
        reached = dimension
    return reached


__all__ = ["RandomSubspace", "d90"]
