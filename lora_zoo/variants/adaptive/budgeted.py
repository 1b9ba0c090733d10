"""Base class of variants that begin with more components than their budget leaves them.

Shapes: O out, I in, R rank.
"""

import math
from abc import ABC
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_zoo.variants.components import cut
from lora_zoo.variants.low_rank import Scaled


class Budgeted(Scaled, ABC):
    """`rank` is the average left at the end, `init_r` the first rank of each matrix: `auto` is 3/2 of it.

    The scale is that of the first rank, and stays while components are dropped.
    """

    rank: int
    scale: float

    @classmethod
    def used_rank(cls, hyper: Mapping[str, Any]) -> int:
        first = hyper["init_r"]
        return math.ceil(1.5 * hyper["rank"]) if first == "auto" else int(first)

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        rank, first, most = hyper["rank"], cls.used_rank(hyper), min(shape)
        fits = 1 <= rank <= first <= most
        return None if fits else f"needs 1 <= rank <= init_r <= {most}; got {rank}, {first}"

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return min(shape) * 2 // 3 if hyper["init_r"] == "auto" else min(*shape, hyper["init_r"])

    def shrink(self, index_K: Tensor) -> dict[str, Any]:
        cut(self, index_K)
        K = self.rank = len(index_K)
        return {"rank": K, "init_r": K, "alpha": self.scale / self.scaling(1.0, K)}
