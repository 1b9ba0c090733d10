"""LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters (Bałazy et al., 2024)."""

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import product
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product, Scaled
from lora_zoo.variants.spectral.singular_space import singular_space


@register("lora_xs")
class LoRAXS(Product, Scaled):
    """§3: h = W x + s U R Σ Vᵀ x; the top-r SVD of W is frozen, the core R (r, r) alone is trained.

    R begins at zero, the limit of the paper's N(0, 10⁻¹⁰), so that step 0 is the base to the bit. The frozen
    factors are saved: another machine's SVD may turn their signs. `init=milora` is the paper's ablation with
    the bottom of the spectrum.
    """

    title = "LoRA-XS"
    paper = "arXiv:2405.17604"
    equation = "W' = W + (α/r) U R Σ Vᵀ, U Σ Vᵀ = top-r SVD of W, frozen"
    count = "R * R"
    inits = ("pissa", "pissa_niter", "pissa_halko", "milora")
    paper_alpha = 16.0  # the official scripts'; it stays fixed while the rank varies
    U_OR: Tensor
    A_RI: Tensor

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        init: str = "pissa",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.scale = self.scale_of(alpha, rank)
        U_OR, S_R, Vh_RI = singular_space(context, init, rank)
        self.register_buffer("U_OR", U_OR)
        self.register_buffer("A_RI", S_R[:, None] * Vh_RI)
        self.R_RR = nn.Parameter(context.full((rank, rank)))
        self.dropout = context.dropout(lora_dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        return product(self.U_OR, self.scale * self.R_RR), self.A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW stays between the chosen singular spaces: ΔW = U Uᵀ ΔW V Vᵀ."""
        dW_OI = self.weight(W_OI) - W_OI
        V_IR = torch.linalg.pinv(self.A_RI) @ self.A_RI
        inside_OI = self.U_OR @ self.U_OR.T @ dW_OI @ V_IR
        torch.testing.assert_close(inside_OI, dW_OI, rtol=1e-4, atol=1e-5)
