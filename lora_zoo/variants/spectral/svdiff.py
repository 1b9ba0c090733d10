"""SVDiff (Han et al., ICCV 2023) and SAM-PARSER (Peng et al., AAAI 2024): the singular values of W train.

Shapes: O out, I in, K = min(O, I) singular values.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product
from lora_zoo.variants.spectral.singular_space import singular_space
from lora_zoo.variants.undecayed import Undecayed


class SingularValues(Product, ABC):
    """W' = U diag(σ') Vᵀ with W's own singular vectors; ΔW is computed from σ' - σ, so that step 0 is exact.

    U, σ and V are saved, so that the files are larger than W's; the papers compute them again when they load.
    """

    U_OK: Tensor
    S_K: Tensor
    Vh_KI: Tensor

    def __init__(self, context: LayerContext, *, lora_dropout: float = 0.0) -> None:
        super().__init__(context)
        found = singular_space(context, "pissa", min(context.shape))
        for name, part in zip(("U_OK", "S_K", "Vh_KI"), found, strict=True):
            self.register_buffer(name, part)
        self.dropout = context.dropout(lora_dropout)

    @abstractmethod
    def values(self) -> Tensor:
        """The effective singular values σ' (K,)."""

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.U_OK * (self.values() - self.S_K), self.Vh_KI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """W and W' share their singular vectors: Uᵀ W' V is diagonal, with σ' on it."""
        seen_KK = self.U_OK.T @ self.weight(W_OI) @ self.Vh_KI.T
        torch.testing.assert_close(seen_KK, self.values().diag(), rtol=1e-4, atol=1e-5)


@register("svdiff")
class SVDiff(SingularValues):
    """§3.2: trained shifts δ of the singular values, from zero; no value becomes negative."""

    paper = "arXiv:2303.11305"
    equation = "W' = U diag(relu(σ + δ)) Vᵀ, U diag(σ) Vᵀ = SVD of W"
    count = "min(O, I)"

    def __init__(self, context: LayerContext, *, lora_dropout: float = 0.0) -> None:
        super().__init__(context, lora_dropout=lora_dropout)
        self.d_K = nn.Parameter(context.full(self.S_K.shape))

    def values(self) -> Tensor:
        return (self.S_K + self.d_K).relu()


@register("sam_parser")
class SAMPARSER(SingularValues):
    """§3: the singular values themselves train, from those of W, and may change their signs.

    No weight decay: it would pull W itself to zero, which the paper does not ask for.
    """

    title = "SAM-PARSER"
    paper = "arXiv:2308.14604"
    equation = "W' = U diag(σ') Vᵀ, σ' = σ at the start, U diag(σ) Vᵀ = SVD of W"
    count = "min(O, I)"
    hooks = Undecayed

    def __init__(self, context: LayerContext, *, lora_dropout: float = 0.0) -> None:
        super().__init__(context, lora_dropout=lora_dropout)
        self.s_K = nn.Parameter(self.S_K.clone())

    def values(self) -> Tensor:
        return self.s_K
