"""One LoRA for all matrices of a shape: what LoRA-drop (Zhou et al., COLING 2025) leaves to the others."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.errors import unknown
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.init import Factors, initial_factors
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled


class FactorsByShape(nn.Module):
    """One trainable A (R, I) and B (O, R) for each shape (O, I), drawn by the seed and the shape alone."""

    def __init__(
        self, shapes: Sequence[tuple[int, int]], like: Tensor, *, rank: int, init: str, seed: int
    ) -> None:
        super().__init__()
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for O, I in sorted(set(shapes)):
            W_OI, name = like.new_zeros(1).expand(O, I), _key(O, I)
            first, _ = initial_factors(init, W_OI, rank=rank, scale=1.0, seed=seed, matrix=f"shared {name}")
            self.A[name], self.B[name] = nn.Parameter(first.A_RI), nn.Parameter(first.B_OR)


class FactorsByShapeHooks(AdapterHooks):
    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> FactorsByShape:
        kept = hyper["kept"]
        for name in kept:
            if name not in shapes:
                raise ValueError("shared_lora: kept: " + unknown("matrix", name, shapes))
        alike = [shape for name, shape in shapes.items() if name not in kept]
        return FactorsByShape(alike, like, rank=hyper["rank"], init=hyper["init"], seed=seed)

    def law(self) -> None:
        alike: dict[tuple[int, ...], set[int]] = {}
        for adapter in self.adapters.values():
            if adapter.own is None:
                shape = (adapter.O, adapter.I)
                alike.setdefault(shape, set()).add(adapter.pair.A[_key(*shape)].data_ptr())
        assert all(len(pointers) == 1 for pointers in alike.values())


@register("shared_lora")
class SharedLoRA(Product, Scaled):
    """LoRA with factors of their own where a matrix is `kept`, one pair a shape for all others.

    A smaller rank than the greatest takes the first rows of A and columns of B.
    """

    title = "Shared LoRA"
    paper = "arXiv:2402.07721"
    equation = "W' = W + (α/r) B A, B and A shared by matrices of one shape"
    count = "R * (O + I)"
    hooks = FactorsByShapeHooks
    inits = ("kaiming", "gaussian", "orthogonal", "zero_a")

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        init: str = "kaiming",
        lora_dropout: float = 0.0,
        kept: Sequence[str] = (),
    ) -> None:
        super().__init__(context)
        self.rank = rank
        self.scale = self.scale_of(alpha, rank)
        self.O, self.I = context.shape
        W_OI = context.host.matrix()
        self.own: nn.ParameterDict | None = None
        if context.name in kept:
            sizes: dict[str, Any] = {"rank": rank, "scale": self.scale}
            first, _ = initial_factors(init, W_OI, seed=context.seed, matrix=context.name, **sizes)
            self.own = nn.ParameterDict({"A": first.A_RI, "B": first.B_OR})
        else:
            self.pair = cast(FactorsByShape, context.shared).to(W_OI.device)
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        """Each shape once; with `kept` matrices, which are not known here, as many as there can be."""
        if any(hyper["kept"] for _, hyper in matrices):
            return super().trainable_count(matrices)
        greatest = max(hyper["rank"] for _, hyper in matrices)
        return sum(greatest * (O + I) for O, I in {shape for shape, _ in matrices})

    def pair_used(self) -> Factors:
        """This matrix's A (R, I) and B (O, R)."""
        if self.own is not None:
            return Factors(self.own["A"], self.own["B"])
        key = _key(self.O, self.I)
        return Factors(self.pair.A[key][: self.rank], self.pair.B[key][:, : self.rank])

    def factors(self) -> tuple[Tensor, Tensor]:
        A_RI, B_OR = self.pair_used()
        return self.scale * B_OR, A_RI


def _key(O: int, I: int) -> str:
    return f"{O}x{I}"
