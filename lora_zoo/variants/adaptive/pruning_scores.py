"""Scores of the entries of low-rank factors, by which SparseAdapter prunes them once.

Letters: O out, I in, R rank; N all entries of all factors.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from lora_zoo.core.seeding import generator
from lora_zoo.variants.adaptive.batched import sensitivities
from lora_zoo.variants.adaptive.masking import Masks, highest


class Scored(Protocol):
    """Hooks whose factors are scored: adapters with A, B and a scale, and the masks over these factors.

    `products` holds the sum of H g over a step's micro-batches, where GraSP needs it, by the step; `number`
    says how many of n entries are kept.
    """

    adapters: dict[str, Any]
    masks: Masks
    products: dict[int, Tensor]
    seed: int

    def number(self, n: int) -> int: ...


def hessian_gradient(loss: Tensor, of: Sequence[Tensor]) -> Tensor:
    """H g (N) of a loss at these tensors, g its gradient."""
    gradient = torch.autograd.grad(loss, of, create_graph=True, materialize_grads=True)
    norm = torch.stack([(g.detach() * g).sum() for g in gradient]).sum()
    return flat(torch.autograd.grad(norm, of, retain_graph=True, materialize_grads=True))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def random(at: Scored) -> Tensor:
    """U(0, 1), drawn for each factor by the run's seed."""
    drawn = (
        torch.rand(tensor.numel(), generator=generator("sparse_adapter", at.seed, name)).to(tensor)
        for name, tensor in zip(at.masks.names, at.masks.tensors, strict=True)
    )
    return torch.cat(list(drawn))


def erdos_renyi(at: Scored) -> Tensor:
    """1 for random entries of each factor, as many as `densities` says, 0 for others."""
    tensors = at.masks.tensors
    counts = densities([(len(t), t[0].numel()) for t in tensors], at.number(len(at.masks.kept_N)))
    parts = random(at).split([tensor.numel() for tensor in tensors])
    chosen = [highest(part, partial(min, count)) for part, count in zip(parts, counts, strict=True)]
    return torch.cat(chosen).to(tensors[0].dtype)


def magnitude(at: Scored) -> Tensor:
    """|p|."""
    return flat(at.masks.tensors).abs()


def snip(at: Scored) -> Tensor:
    """|p ∂L/∂p|, which is |∂L/∂m| of a mask m at 1 (arXiv:1810.02340)."""
    return flat(sensitivities(at.masks.tensors)).abs()


def grasp(at: Scored) -> Tensor:
    """p (H g): what keeps the gradient's norm is kept (arXiv:2002.07376).

    H g is that of each micro-batch by itself, their sum. The logits are not divided by a temperature: the
    official code sets one, 200, and does not use it.
    """
    product_N = next(iter(at.products.values()), None)
    values_N = flat(at.masks.tensors)
    return torch.zeros_like(values_N) if product_N is None else values_N * product_N


def synflow(at: Scored) -> Tensor:
    """|p ∂S/∂p| with S = s Σ |B| |A|, the sum of an adapter's outputs for ones (arXiv:2006.05467).

    As in the official code an adapter is seen by itself; that code takes the mean of its outputs. S is
    written out, so that there is no pass.
    """
    found: dict[str, Tensor] = {}
    for name, adapter in at.adapters.items():
        A_RI, B_OR = adapter.A_RI.abs(), adapter.B_OR.abs() * abs(adapter.scale)
        found[f"{name}.A_RI"] = A_RI * B_OR.sum(0)[:, None]
        found[f"{name}.B_OR"] = B_OR * A_RI.sum(1)
    return flat([found[name] for name in at.masks.names])


SCORES: dict[str, Callable[[Scored], Tensor]] = {
    made.__name__: made for made in (random, erdos_renyi, magnitude, snip, grasp, synflow)
}
"""A name -> the scores (N) of all entries, in the order of the masks."""


def densities(shapes: Sequence[tuple[int, int]], total: int) -> list[int]:
    """The entries that Erdős-Rényi keeps of each matrix (a, b), `total` in all.

    The share is proportional to (a + b) / (a b), and 1 where that would be more (arXiv:1911.11134, §3).
    Rounded down, and the greatest remainders up.
    """
    counts: dict[int, float] = {}
    while True:
        free = [n for n in range(len(shapes)) if n not in counts]
        unit = (total - sum(counts.values())) / max(1, sum(sum(shapes[n]) for n in free))
        full = {n: math.prod(shapes[n]) for n in free if unit * sum(shapes[n]) > math.prod(shapes[n])}
        if not full:
            break
        counts |= full
    exact = [counts.get(n, unit * sum(shape)) for n, shape in enumerate(shapes)]
    whole = [int(count + 1e-9) for count in exact]
    order = sorted(range(len(shapes)), key=lambda n: whole[n] - exact[n])
    for n in order[: total - sum(whole)]:
        whole[n] += 1
    return whole
