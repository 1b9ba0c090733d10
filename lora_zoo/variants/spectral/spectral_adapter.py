"""Spectral Adapter: Fine-Tuning in Spectral Space (Zhang and Pilanci, NeurIPS 2024): both forms.

Shapes: O out, I in, R rank, P = 2 R.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product
from lora_zoo.variants.spectral.singular_space import singular_space


class SpectralSpace(Product, ABC):
    """Keeps the top-r U, σ and V of W, frozen and saved; what lies beside them in W stays as it is.

    `init=milora` is the paper's ablation with the bottom of the spectrum. There is no scale.
    """

    inits = ("pissa", "milora")
    U_OR: Tensor
    S_R: Tensor
    Vh_RI: Tensor

    def __init__(
        self, context: LayerContext, *, rank: int = 8, init: str = "pissa", lora_dropout: float = 0.0
    ) -> None:
        super().__init__(context)
        for name, found in zip(("U_OR", "S_R", "Vh_RI"), singular_space(context, init, rank), strict=True):
            self.register_buffer(name, found)
        self.add_trained(context, rank)
        self.dropout = context.dropout(lora_dropout)

    @abstractmethod
    def add_trained(self, context: LayerContext, rank: int) -> None:
        """Make the trained tensors, at zero."""

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return min(shape)


@register("spectral_adapter_a")
class SpectralAdapterA(SpectralSpace):
    """§2, additive: A and B are added to the singular vectors; the rank of ΔW is up to 2 r."""

    title = "Spectral Adapter (additive)"
    paper = "arXiv:2405.13952"
    equation = "W' = W + (U + A) Σ (V + B)ᵀ - U Σ Vᵀ, U Σ Vᵀ = top-r SVD of W"
    count = "R * (O + I)"

    def add_trained(self, context: LayerContext, rank: int) -> None:
        O, I = context.shape
        self.A_OR, self.B_RI = (nn.Parameter(context.full(shape)) for shape in ((O, rank), (rank, I)))

    def factors(self) -> tuple[Tensor, Tensor]:
        left_OP = torch.cat([self.A_OR * self.S_R, (self.U_OR + self.A_OR) * self.S_R], dim=1)
        return left_OP, torch.cat([self.Vh_RI, self.B_RI])

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        moved_OI = ((self.U_OR + self.A_OR) * self.S_R) @ (self.Vh_RI + self.B_RI)
        rest_OI = W_OI - (self.U_OR * self.S_R) @ self.Vh_RI
        torch.testing.assert_close(self.weight(W_OI), moved_OI + rest_OI)


@register("spectral_adapter_r")
class SpectralAdapterR(SpectralSpace):
    """§2, rotational: the singular vectors turn within their space, by Cayley's map of P and Q (r, r).

    Their skew parts alone act, so that rank 1 could not turn. The official code for images also trains σ.
    """

    title = "Spectral Adapter (rotational)"
    paper = "arXiv:2405.13952"
    equation = "W' = W + U R_U Σ R_Vᵀ Vᵀ - U Σ Vᵀ, R orthogonal, U Σ Vᵀ = top-r SVD of W"
    count = "2 * R * R"
    kernel = ""  # one promises a backward pass in own dtypes also under autocast, which a solve does not

    def add_trained(self, context: LayerContext, rank: int) -> None:
        self.P_RR, self.Q_RR = (nn.Parameter(context.full((rank, rank))) for _ in "PQ")

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return "rank must be at least 2, as one vector cannot turn; got 1" if hyper["rank"] == 1 else None

    def factors(self) -> tuple[Tensor, Tensor]:
        with uncast(self.P_RR.device):
            core_RR = (cayley(self.P_RR) * self.S_R) @ cayley(self.Q_RR).T - self.S_R.diag()
            return self.U_OR @ core_RR.to(self.U_OR.dtype), self.Vh_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The singular values of W stay."""
        before_K, after_K = (torch.linalg.svdvals(M.double()) for M in (W_OI, self.weight(W_OI)))
        torch.testing.assert_close(after_K, before_K, rtol=1e-4, atol=1e-5)


def cayley(P_RR: Tensor) -> Tensor:
    """(1 - K) (1 + K)⁻¹ (R, R) of the skew K = (P - Pᵀ) / 2: a rotation; the identity at P = 0."""
    wide_RR = P_RR.to(at_least_float32(P_RR.dtype))
    K_RR, one_RR = (wide_RR - wide_RR.T) / 2, torch.eye(len(P_RR), dtype=wide_RR.dtype, device=P_RR.device)
    return torch.linalg.solve(one_RR + K_RR, one_RR - K_RR)
