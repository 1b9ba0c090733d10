"""LoTR: Low Tensor Rank Weight Adaptation (Bershatsky et al., 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import product
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.init import Factors
from lora_zoo.core.seeding import generator, normal
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled
from lora_zoo.variants.shared.pairs_by_shape import SharedPair, pairs_by_shape, pairs_count, shape_key


class TuckerFactors(AdapterHooks):
    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> nn.ModuleDict:
        """A pair for each shape, N(0, 1) as in the official code, of the greatest rank."""

        def draw(shape: tuple[int, int]) -> Factors:
            key, rank = shape_key(shape), hyper["rank"]
            B_RO, A_RI = (
                normal(rank, side, 1.0, generator("init", seed, "lotr", key, factor)).to(like)
                for factor, side in zip("BA", shape, strict=True)
            )
            return Factors(A_RI, B_RO.T.contiguous())

        return pairs_by_shape(shapes.values(), draw)

    @torch.no_grad()
    def law(self) -> None:
        """The ΔW of one shape are one tensor of Tucker rank r: so are all their rows, and all columns."""
        by_key = dict[str, list[LoTR]]()
        for adapter in self.adapters.values():
            by_key.setdefault(adapter.key, []).append(adapter)
        for alike in by_key.values():
            updates, rank = (
                [B_OR @ A_RI for B_OR, A_RI in map(LoTR.factors, alike)],
                max(a.rank for a in alike),
            )
            for stacked in (torch.cat(updates), torch.cat(updates, dim=1)):
                assert int(torch.linalg.matrix_rank(stacked, rtol=1e-5)) <= rank


@register("lotr")
class LoTR(Product, Scaled):
    """§4: L and R are one pair for all matrices of a shape, the core M (r, r) is each one's own, from zero.

    The ΔW of all of them are one tensor in Tucker's form, with the layers' mode not compressed.
    """

    paper = "arXiv:2402.01376"
    equation = "W' = W + (α/r) L M R, L and R shared by all matrices of a shape"
    count = "R * R"
    hooks = TuckerFactors

    def __init__(
        self, context: LayerContext, *, rank: int = 8, alpha: Alpha = "auto", lora_dropout: float = 0.0
    ) -> None:
        super().__init__(context)
        self.rank, self.key = rank, shape_key(context.shape)
        self.scale = self.scale_of(alpha, rank)
        self.pair: SharedPair = context.shared[self.key]  # type: ignore[index]
        self.M_RR = nn.Parameter(context.full((rank, rank)))
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        return super().trainable_count(matrices) + pairs_count(matrices)

    def factors(self) -> tuple[Tensor, Tensor]:
        L_OR, R_RI = self.pair.leading(self.rank)
        return product(self.scale * L_OR, self.M_RR), R_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is linear in its own core: doubled, it gives 2 ΔW."""
        L_OR, R_RI = self.pair.leading(self.rank)
        doubled_OI = self.scale * L_OR @ (2 * self.M_RR) @ R_RI
        torch.testing.assert_close(W_OI + doubled_OI / 2, self.weight(W_OI))
