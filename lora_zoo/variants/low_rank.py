"""Base classes of variants with low-rank factors.

Shapes: O out, I in, R rank; W is (O, I) whatever the layer's own layout.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext, Variant
from lora_zoo.core.alpha import Alpha, of_rank
from lora_zoo.core.dtypes import uncast
from lora_zoo.core.host import Host, LayerHost
from lora_zoo.core.init import Factors, Init, find_init, kept_factors
from lora_zoo.kernels.dense import joined
from lora_zoo.kernels.shared import FactorPair
from lora_zoo.variants.components import cut


class Scaled(Adapter, ABC):
    """Multiplies its update by `scaling(alpha, rank)`."""

    paper_alpha: ClassVar[Alpha] = "r"
    """The paper's alpha, which `auto` means: a number whatever the rank, or a multiple of the rank."""

    @classmethod
    def used_rank(cls, hyper: Mapping[str, Any]) -> int:
        """The rank by which alpha is divided."""
        return int(hyper["rank"])

    @classmethod
    def alpha_of(cls, alpha: Alpha, rank: int) -> float:
        """Alpha as a number, with the paper's for `auto`."""
        return of_rank(cls.paper_alpha if alpha == "auto" else alpha, rank)

    @staticmethod
    def scaling(alpha: float, rank: int) -> float:
        """The scale s of the update (LoRA, section 4.1)."""
        return alpha / rank

    @classmethod
    def scale_of(cls, alpha: Alpha, rank: int) -> float:
        """The scale s of a matrix of this rank."""
        return cls.scaling(cls.alpha_of(alpha, rank), rank)

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return min(shape)

    @classmethod
    def complete(cls, hyper: Mapping[str, Any]) -> dict[str, Any]:
        alpha = hyper["alpha"]
        number = cls.alpha_of(alpha, cls.used_rank(hyper)) if isinstance(alpha, str) else alpha
        return {**hyper, "alpha": number}

    @classmethod
    def scale_with(cls, hyper: Mapping[str, Any]) -> float | None:
        return cls.scale_of(hyper["alpha"], cls.used_rank(hyper))


class Product(Adapter, ABC):
    """W' = W + B A for some `factors()`: the branch is two thin products beside the frozen layer."""

    kernel = "additive"

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]: ...

    def weight(self, W_OI: Tensor) -> Tensor:
        B_OR, A_RI = self.factors()
        return W_OI + B_OR @ A_RI

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        """The parts of `factors()`: the product that learns, and a frozen one if there is any."""
        return FactorPair(*self.factors()), None

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        B_OR, A_RI = self.factors()
        y = host.base(x)
        return y + host.low_rank(host.dropped(x, self.dropout), B_OR, A_RI).to(y.dtype)


class LowRank(Scaled, ABC):
    """Owns trainable factors A (R, I) and B (O, R), their scale s, initialisation and dropout.

    A residual init (PiSSA and kin) also keeps its first factors A0, B0; the update is s (B A - B0 A0). One
    that recodes keeps Aq, Bq: the layer's codes are those of W - s Bq Aq.
    """

    A0_RI: Tensor | None
    B0_OR: Tensor | None
    Aq_RI: Tensor | None
    Bq_OR: Tensor | None

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        init: str = "kaiming",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        alpha = self.alpha_of(alpha, rank)
        self.rank, self.alpha, self.scale = rank, alpha, self.scaling(alpha, rank)
        self.init = conventional_init(type(self), init, context.host)
        if not 0 < abs(self.scale) < float("inf"):
            raise ValueError(f"the scale of {context.name} must be a number other than 0; alpha={alpha}")
        recoding = context.recoding(self.init, scale=self.scale)
        first, residual = context.first_factors(self.init, rank=rank, scale=self.scale, recoding=recoding)
        self.A_RI, self.B_OR = nn.Parameter(first.A_RI), nn.Parameter(first.B_OR)
        self.register_buffer("A0_RI", first.A_RI.clone() if residual else None)
        self.register_buffer("B0_OR", first.B_OR.clone() if residual else None)
        coded = kept_factors(self.init, recoding, first)
        self.register_buffer("Aq_RI", coded.A_RI if coded else None)
        self.register_buffer("Bq_OR", coded.B_OR if coded else None)
        self.dropout = context.dropout(lora_dropout)
        if lora_dropout and residual:
            self.drop_beside_start(f"lora_dropout={lora_dropout} with the residual init={init}")

    def drop_beside_start(self, asked: str) -> None:
        """Take dropout beside a residual start, or raise ValueError in the words of what was `asked`."""
        raise ValueError(f"{asked} has no published form for {self.name}; use lora_dropout=0 with it")

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return True

    def pairs(self) -> tuple[FactorPair, FactorPair | None]:
        """s B A, and a residual initialisation's -s B0 A0."""
        learning = FactorPair(self.B_OR, self.A_RI, self.scale)
        if self.A0_RI is None or self.B0_OR is None:
            return learning, None
        return learning, FactorPair(self.B0_OR, self.A0_RI, -self.scale)

    def branch(self) -> tuple[Tensor, Tensor]:
        """Thin (B, A), with the scale and a residual initialisation's own factors."""
        return joined(*self.pairs()).scaled()

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        dropped = host.dropped(x, self.dropout)
        if dropped is x:
            return super().forward(x, host)
        return host.base(x) + host.times(dropped, self.change(host.matrix()))

    def update(self) -> Tensor:
        """s B A, less s B0 A0 of a residual initialisation: (O, I)."""
        B_OR, A_RI = self.branch()
        with uncast(A_RI.device):
            return B_OR @ A_RI

    def coded(self) -> Factors | None:
        return None if self.Aq_RI is None or self.Bq_OR is None else Factors(self.Aq_RI, self.Bq_OR)

    def factor_scale(self) -> float:
        return self.scale

    def components(self) -> int:
        """The rank; 0 with an initialisation whose first factors are kept, and keep theirs."""
        return self.rank if self.A0_RI is None and self.Aq_RI is None else 0

    def shrink(self, index_K: Tensor) -> dict[str, Any]:
        cut(self, index_K)
        alpha = self.scale / self.scaling(1.0, len(index_K))
        self.rank, self.alpha, self.scale = len(index_K), alpha, self.scaling(alpha, len(index_K))
        return {"rank": self.rank, "alpha": alpha}

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, init={self.init}"


class Additive(LowRank, Product, ABC):
    """LoRA's own form: the trainable product is added to W."""

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.branch()

    def drop_beside_start(self, asked: str) -> None:
        self.fused = None  # kernels show one x to both products
        warnings.warn(
            f"{asked}: as published, dropout acts on the trained factors and not on what the start took "
            "from W: passes in training mode differ from the base at step 0 already",
            stacklevel=2,
        )

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y, dropped = host.base(x), host.dropped(x, self.dropout)
        learning, start = self.pairs()
        if start is None or dropped is x:
            return y + host.low_rank(dropped, *self.factors()).to(y.dtype)
        of_pair, of_start = host.low_rank(dropped, *learning.scaled()), host.low_rank(x, *start.scaled())
        return y + (of_pair + of_start).to(y.dtype)


def conventional_init(cls: type[Variant], init: str, host: Host) -> str:
    """The initialisation that `init` means on this layer type, where the variant accepts it."""
    usual = host.conventional_inits.get(init, init)
    return usual if cls.accepts_init(find_init(usual)) else init
