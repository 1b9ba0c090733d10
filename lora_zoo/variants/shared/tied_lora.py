"""Tied-LoRA: Enhancing parameter efficiency of LoRA with Weight Tying (Renduchintala et al., NAACL 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.init import Factors, Init, initial_factors
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled
from lora_zoo.variants.shared.pairs_by_shape import SharedPair, pairs_by_shape, pairs_count, shape_key


class TiedFactors(AdapterHooks):
    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> nn.ModuleDict:
        """A pair for each shape, of the greatest rank; a matrix of a smaller one takes its first rows."""

        def draw(shape: tuple[int, int]) -> Factors:
            W_OI, sizes = like.new_zeros(()).expand(shape), {"rank": hyper["rank"], "scale": 1.0}
            return initial_factors(hyper["init"], W_OI, seed=seed, matrix=shape_key(shape), **sizes)[0]

        return pairs_by_shape(shapes.values(), draw)

    @torch.no_grad()
    def law(self) -> None:
        """All ΔW of one shape, stacked, have the rank of one: their rows are those of one A."""
        by_shape = dict[str, list[Tensor]]()
        for adapter in self.adapters.values():
            B_OR, A_RI = adapter.factors()
            by_shape.setdefault(shape_key((len(B_OR), A_RI.shape[1])), []).append(B_OR @ A_RI)
        for key, updates in by_shape.items():
            rank = max(a.rank for a in self.adapters.values() if a.key == key)
            assert int(torch.linalg.matrix_rank(torch.cat(updates), rtol=1e-5)) <= rank


@register("tied_lora")
class TiedLoRA(Product, Scaled):
    """§3: A and B are one pair for all matrices of a shape and train; u and v are each matrix's own.

    `scales=trained` is the paper's TL6; `fixed` leaves u = v = 1 (TL5): all matrices have one update.
    """

    title = "Tied-LoRA"
    paper = "arXiv:2311.09578"
    equation = "W' = W + (α/r) diag(v) B diag(u) A, A and B shared by all matrices of a shape"
    count = "(O + R) if scales == 'trained' else 0"
    hooks = TiedFactors

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        init: str = "kaiming",
        scales: Literal["trained", "fixed"] = "trained",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.rank, self.key = rank, shape_key(context.shape)
        self.scale = self.scale_of(alpha, rank)
        self.pair: SharedPair = context.shared[self.key]  # type: ignore[index]
        learns = scales == "trained"
        self.u_R = nn.Parameter(context.full((rank,), 1.0), learns)
        self.v_O = nn.Parameter(context.full(context.shape[:1], 1.0), learns)
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        """Starts with one factor at zero that look neither at W, of which there are many, nor at its data."""
        return init.zero in ("A", "B") and not init.needs

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        return super().trainable_count(matrices) + pairs_count(matrices)

    def factors(self) -> tuple[Tensor, Tensor]:
        B_OR, A_RI = self.pair.leading(self.rank)
        return self.scale * self.v_O[:, None] * B_OR * self.u_R, A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW's rows are combinations of the shared A's, its columns over v of the shared B's."""
        dW_OI = self.weight(W_OI) - W_OI
        A_RI, vB_OR = self.pair.A_RI[: self.rank], self.v_O[:, None] * self.pair.B_OR[:, : self.rank]
        for inside_OI in (dW_OI @ torch.linalg.pinv(A_RI) @ A_RI, vB_OR @ torch.linalg.pinv(vB_OR) @ dW_OI):
            torch.testing.assert_close(inside_OI, dW_OI, rtol=1e-4, atol=1e-5)
