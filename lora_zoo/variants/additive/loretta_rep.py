"""LoRETTA: Low-Rank Economic Tensor-Train Adaptation (Yang et al., NAACL 2024), the form for weights.

Letters: N cores of a train, T the train's rank, S the side (O or I) that a factor is about.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import product
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled

CORES = 3
"""Cores into which a side of the matrix is split, beside the one of the rank: 768 = 8 · 8 · 12."""
Shape = tuple[int, int]


@register("loretta_rep")
class LoRETTARep(Product, Scaled):
    """§3.2: LoRA whose A and B are tensor trains, with cores of the side's three factors and of the rank.

    Cores begin as in the official code, apart from B's last one, which is zero: there ΔW is not 0 at step 0.
    That code takes the factors of a side from a table; here they are as equal as its primes allow.
    """

    paper = "arXiv:2402.11417"
    equation = "W' = W + (α/r) B A, B and A tensor trains"
    count = ""  # no formula: it depends on the factors of the sides
    paper_alpha = 16.0  # the code's; it stays fixed while the rank varies

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        tensor_rank: int = 5,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.rank, self.scale = rank, self.scale_of(alpha, rank)
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        shapes_of_A, shapes_of_B = core_shapes(context.shape, rank, tensor_rank)
        for name, cores, shapes in (("A", self.A, shapes_of_A), ("B", self.B, shapes_of_B)):
            side = math.prod(n for _, n, _ in shapes) // rank
            for number, shape in enumerate(shapes):
                std = (side + rank) ** (-0.5 / len(shapes)) / shape[2] ** 0.5
                cores.append(nn.Parameter(context.normal(f"{name}{number}", shape, std)))
        nn.init.zeros_(self.B[-1])
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def refusal(cls, kind: str, shape: Shape, hyper: Mapping[str, Any]) -> str | None:
        rank = hyper["tensor_rank"]
        return None if rank >= 1 else f"tensor_rank must be at least 1; got {rank}"

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[Shape, Mapping[str, Any]]]) -> int:
        found = (core_shapes(shape, own["rank"], own["tensor_rank"]) for shape, own in matrices)
        return sum(math.prod(core) for trains in found for cores in trains for core in cores)

    def factors(self) -> tuple[Tensor, Tensor]:
        A_SR, B_RS = contracted(self.A).view(-1, self.rank), contracted(self.B).view(self.rank, -1)
        return self.scale * B_RS.T, A_SR.T

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Cut between two cores, a train is a matrix whose rank is at most the train's."""
        for cores in (self.A, self.B):
            train, rows = contracted(cores), 1
            for core in list(cores)[:-1]:
                rows *= core.shape[1]
                assert int(torch.linalg.matrix_rank(train.view(rows, -1), rtol=1e-5)) <= core.shape[2]


def contracted(cores: nn.ParameterList) -> Tensor:
    """The train's entries, flat, the last core's index the fastest: a product of one slice of each core."""
    first, *others = cores
    found = first.flatten(0, 1)
    for core in others:
        found = product(found, core.flatten(1)).view(-1, core.shape[2])
    return found.flatten()


def core_shapes(shape: Shape, rank: int, tensor_rank: int) -> tuple[list[tuple[int, int, int]], ...]:
    """The cores (T, n, T) of A, whose last index is the rank's, and of B, whose first one is."""
    O, I = shape
    found = []
    for modes in ((*split_evenly(I), rank), (rank, *split_evenly(O))):
        ends = [1, *[tensor_rank] * (len(modes) - 1), 1]
        found.append([(before, n, after) for n, (before, after) in zip(modes, pairwise(ends), strict=True)])
    return tuple(found)


def split_evenly(side: int) -> list[int]:
    """At most `CORES` factors of `side`, ascending, about as great as each other."""
    factors, primes, left = [1] * CORES, [], side
    for prime in range(2, side + 1):
        while left % prime == 0:
            primes.append(prime)
            left //= prime
    for prime in reversed(primes):
        factors[factors.index(min(factors))] *= prime
    return sorted(factor for factor in factors if factor > 1) or [1]
