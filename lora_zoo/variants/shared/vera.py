"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., ICLR 2024)."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.vera import VeraFormat
from lora_zoo.inits.shared_projections import SharedProjections, gain_of
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.low_rank import Product


class SharedProjectionHooks(AdapterHooks):
    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> SharedProjections:
        key, projection = hyper["projection_prng_key"], hyper["projection"]
        return SharedProjections.covering(shapes.values(), hyper["rank"], key, projection, like.device)


@register("vera")
class VeRA(Product):
    """Eq. 2: h = W x + Λ_b B Λ_d A x, with A and B frozen, random and shared."""

    paper = "arXiv:2310.11454"
    equation = "W' = W + diag(b) B diag(d) A"
    count = "O + R"
    peft = VeraFormat()
    kernel = "vera"
    hooks = SharedProjectionHooks
    inits = ("kaiming",)

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 256,
        init: str = "kaiming",
        d_initial: float = 0.1,
        projection: Literal["nested", "peft"] = "nested",
        projection_prng_key: int = 0,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        if not d_initial:
            raise ValueError("vera: with d_initial=0 neither vector ever gets a gradient; the paper's is 0.1")
        O, self.I = context.shape
        W_OI = context.host.matrix()
        self.pair: SharedProjections = context.shared.to(W_OI.device)  # type: ignore[assignment, union-attr]
        self.gain = gain_of(projection, self.I, rank)
        self.d_R, self.b_O = nn.Parameter(context.full((rank,), d_initial)), nn.Parameter(context.full((O,)))
        self.dropout = context.dropout(lora_dropout)

    def projections(self) -> FactorPair:
        """This site's part of the shared pair: B (O, R) and A (R, I)."""
        O, R = len(self.b_O), len(self.d_R)
        B_OR, A_RI = self.pair.B_OR[:O, :R], self.pair.A_RI[:R, : self.I]
        return FactorPair(B_OR.to(self.b_O.dtype), A_RI.to(self.b_O.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        B_OR, A_RI, _ = self.projections()
        return self.b_O[:, None] * B_OR * (self.gain * self.d_R), A_RI
