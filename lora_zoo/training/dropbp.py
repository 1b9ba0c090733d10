"""DropBP: Accelerating Fine-Tuning of Large Language Models by Dropping Backward Propagation (NeurIPS 2024).

arXiv:2402.17812. A residual sub-layer h + f(h) becomes h + detach(f(h)) with the probability of its rate: the
forward value is the same, and nothing of the sub-layer is differentiated in that pass. It acts on the model,
beside any variant.
"""

import contextlib
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.hooks import Progress
from lora_zoo.core.seeding import generator
from lora_zoo.injection.base_model import named_base_modules
from lora_zoo.injection.roles import fused, role_of

ALLOCATED = 0.1
"""The share of the run after which rates are allocated, as in the official code."""
STRIDE, MOST = 0.1, 0.9
"""The allocation's step, and the greatest rate that it gives."""
_INSIDE = {"o": "qkvo", "down": ("gate", "up", "down")}
Gradients = Callable[[], Sequence[Tensor | None]]
"""The gradients of the trained parameters in one pass of a batch, the same pass at each call."""


class Branch(NamedTuple):
    """A residual sub-layer: its weights, and the width of its attention, 0 where it has none."""

    weights: int
    attention: int

    def cost(self, length: int) -> int:
        """Products for a token in a sequence of this length: with the weights, and with the other tokens."""
        return self.weights + 2 * length * self.attention


def branches(model: nn.Module) -> dict[str, Branch]:
    """The residual sub-layers by the names of their last layers, which play the roles o and down.

    ValueError for a model in which there is none.
    """
    held = {name: getattr(module, "weight", None) for name, module in named_base_modules(model)}
    shapes = {
        name: tuple(W.shape)
        for name, W in held.items()
        if isinstance(W, Tensor) and (role_of(name) or fused(name))
    }
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    ends = [name for name in shapes if role_of(name) in _INSIDE]
    if not ends:
        raise ValueError(
            "dropbp: no layer of the model is known as the last of a residual sub-layer (o, down)"
        )
    return {n: Branch(_around(n, sizes), shapes[n][-1] if role_of(n) == "o" else 0) for n in ends}


def _around(end: str, sizes: Mapping[str, int]) -> int:
    """The weights of a sub-layer: the layers of its roles under the nearest module that holds another one."""
    roles, place = _INSIDE[role_of(end)], end
    while place:
        place = place.rpartition(".")[0]
        inside = [n for n in sizes if n.startswith(f"{place}.") or not place]
        own = [n for n in inside if role_of(n) in roles or ("q" in roles and fused(n))]
        if len(own) > 1:
            return sum(sizes[name] for name in own)
    return sizes[end]


def allocated(sensitivities: Sequence[float], costs: Sequence[float], rate: float) -> list[float]:
    """Rates whose mean, by cost, is `rate`: in strides, each to where it adds least to the sensitivity lost.

    A sub-layer of rate p loses p times its sensitivity, and more the higher it is: the n-th stride counts n
    times, as in the official code.
    """
    rates, queue = [0.0] * len(costs), [(STRIDE * s, -n) for n, s in enumerate(sensitivities)]
    heapq.heapify(queue)
    left, target = sum(costs), (1 - rate) * sum(costs)
    while left > target * (1 + 1e-9) and queue:
        loss, last = heapq.heappop(queue)
        number = -last
        rates[number] += STRIDE
        left -= STRIDE * costs[number]
        if rates[number] < MOST - STRIDE / 2:
            heapq.heappush(queue, (loss + STRIDE * sensitivities[number], last))
    return [round(p, 1) for p in rates]


class BackwardDropper:
    """Draws the sub-layers whose backward pass is dropped, anew for each pass, by seed, step and pass alone.

    The rate is the same for all until `ALLOCATED` of the run, then by sensitivity unless `uniform`; during
    the share `warmup` of the run nothing is dropped. ValueError for a model without known sub-layers, and for
    a rate that the allocation cannot reach.
    """

    def __init__(self, model: nn.Module, rate: float, *, warmup: float, uniform: bool, seed: int) -> None:
        if not uniform and rate > MOST:
            raise ValueError(
                f"dropbp={rate} is above {MOST}, which rates by sensitivity reach: less, or uniform"
            )
        self.branches, self.seed, self.warmup, self.uniform = branches(model), seed, warmup, uniform
        self.layers = {name: m for name, m in named_base_modules(model) if name in self.branches}
        self.rates = dict.fromkeys(self.branches, rate)
        self.mean, self.is_allocated, self._pass = rate, False, (0, 0)

    def state(self) -> dict[str, Any]:
        return {"rates": self.rates, "allocated": self.is_allocated}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.rates, self.is_allocated = dict(state["rates"]), state["allocated"]

    def is_due(self, progress: Progress) -> bool:
        """True in the first pass in which rates by sensitivity are used."""
        done = (progress.step - 1) / progress.total
        return not self.uniform and not self.is_allocated and done >= max(self.warmup, ALLOCATED)

    def allocate(self, gradients: Gradients, length: int) -> None:
        """Measure what each sub-layer contributes to the gradient's norms, and set the rates.

        S_l = Σ (‖g‖ - ‖g without l‖)² over the parameters. `length` is that of a sequence.
        """
        whole, found = _norms(gradients()), []
        for name in self.branches:
            with self._cut([name]):
                found.append(float((whole - _norms(gradients())).square().sum()))
        costs = [branch.cost(length) for branch in self.branches.values()]
        self.rates = dict(zip(self.branches, allocated(found, costs, self.mean), strict=True))
        self.is_allocated = True

    @contextlib.contextmanager
    def dropping(self, progress: Progress) -> Iterator[None]:
        """Inside, a pass's sub-layers are cut as drawn."""
        step, number = self._pass
        self._pass = progress.step, number + 1 if step == progress.step else 0
        source = generator("dropbp", self.seed, *self._pass)
        drawn = torch.rand(len(self.rates), generator=source, dtype=torch.float64).tolist()
        idle = (progress.step - 1) / progress.total < self.warmup
        chosen = [n for u, (n, p) in zip(drawn, self.rates.items(), strict=True) if u < p and not idle]
        with self._cut(chosen):
            yield

    @contextlib.contextmanager
    def _cut(self, names: Sequence[str]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(self.layers[name].register_forward_hook(_detached))
            yield


def _detached(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    return output.detach() if module.training else output


def _norms(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([torch.zeros(()) if g is None else g.detach().norm().float().cpu() for g in gradients])
