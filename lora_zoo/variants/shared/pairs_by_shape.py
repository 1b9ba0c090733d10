"""Trained pairs of factors, one for all matrices of a shape.

Shapes: O out, I in, R rank.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lora_zoo.core.init import Factors

Shape = tuple[int, int]


class SharedPair(nn.Module):
    """The trained A (R, I) and B (O, R) of all matrices of one shape."""

    def __init__(self, first: Factors) -> None:
        super().__init__()
        self.A_RI, self.B_OR = nn.Parameter(first.A_RI), nn.Parameter(first.B_OR)

    def leading(self, rank: int) -> tuple[Tensor, Tensor]:
        """B (O, rank) and A (rank, I): a smaller rank takes the first columns and rows."""
        return self.B_OR[:, :rank], self.A_RI[:rank]


def pairs_by_shape(shapes: Iterable[Shape], draw: Callable[[Shape], Factors]) -> nn.ModuleDict:
    """A pair for each shape, by its key."""
    return nn.ModuleDict({shape_key(shape): SharedPair(draw(shape)) for shape in set(shapes)})


def pairs_count(matrices: Iterable[tuple[Shape, Mapping[str, Any]]]) -> int:
    """The numbers in the pairs of all matrices (O, I), each pair of the greatest rank."""
    known = list(matrices)
    rank = max(hyper["rank"] for _, hyper in known)
    return sum(rank * (O + I) for O, I in {shape for shape, _ in known})


def shape_key(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"
