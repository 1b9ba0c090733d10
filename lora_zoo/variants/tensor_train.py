"""Matrices as tensor trains, as LoRETTA (Yang et al., NAACL 2024) has them.

Letters: N cores of a train, T the train's rank, S the side (O or I) that a factor is about.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dtypes import product

CORES = 3
"""Cores into which a side of the matrix is split, beside the one of the rank: 768 = 8 · 8 · 12."""
Shape = tuple[int, int]
Core = tuple[int, int, int]


def drawn(context: LayerContext, name: str, shapes: list[Core], rank: int) -> nn.ParameterList:
    """The cores of a train of S times `rank` entries, which have the variance 1 / (S + R), as published."""
    side = math.prod(n for _, n, _ in shapes) // rank
    stds = [(side + rank) ** (-0.5 / len(shapes)) / after**0.5 for _, _, after in shapes]
    draws = (
        context.normal(f"{name}{k}", shape, std)
        for k, (shape, std) in enumerate(zip(shapes, stds, strict=True))
    )
    return nn.ParameterList(map(nn.Parameter, draws))


def contracted(cores: nn.ParameterList) -> Tensor:
    """The train's entries, flat, the last core's index the fastest: a product of one slice of each core."""
    first, *others = cores
    found = first.flatten(0, 1)
    for core in others:
        found = product(found, core.flatten(1)).view(-1, core.shape[2])
    return found.flatten()


def core_shapes(shape: Shape, modes_of_R: Sequence[int], tensor_rank: int) -> tuple[list[Core], ...]:
    """The cores (T, n, T) of A, whose last indices are the rank's, and of B, whose first ones are."""
    O, I = shape
    found = []
    for modes in ((*split_evenly(I), *modes_of_R), (*modes_of_R, *split_evenly(O))):
        ends = [1, *[tensor_rank] * (len(modes) - 1), 1]
        found.append([(before, n, after) for n, (before, after) in zip(modes, pairwise(ends), strict=True)])
    return tuple(found)


def core_count(shape: Shape, modes_of_R: Sequence[int], tensor_rank: int) -> int:
    """The numbers in the cores of A and B."""
    return sum(math.prod(core) for cores in core_shapes(shape, modes_of_R, tensor_rank) for core in cores)


def split_evenly(side: int, cores: int = CORES) -> list[int]:
    """At most so many factors of `side`, ascending, about as great as each other."""
    factors, primes, left = [1] * cores, [], side
    for prime in range(2, side + 1):
        while left % prime == 0:
            primes.append(prime)
            left //= prime
    for prime in reversed(primes):
        factors[factors.index(min(factors))] *= prime
    return sorted(factor for factor in factors if factor > 1) or [1]


def refused(tensor_rank: int) -> str | None:
    """The reason why no train has this rank, None where one has."""
    return None if tensor_rank >= 1 else f"tensor_rank must be at least 1; got {tensor_rank}"


def assert_train(cores: nn.ParameterList) -> None:
    """Cut between two cores, a train is a matrix whose rank is at most the train's."""
    train, rows = contracted(cores), 1
    for core in list(cores)[:-1]:
        rows *= core.shape[1]
        assert int(torch.linalg.matrix_rank(train.view(rows, -1), rtol=1e-5)) <= core.shape[2]
