"""NOLA: Compressing LoRA using Linear Combination of Random Basis (Koohpayegani et al., ICLR 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dtypes import product
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.seeding import generator, kaiming_bound, uniform
from lora_zoo.core.variants import register
from lora_zoo.inits.shared_projections import SharedProjections
from lora_zoo.variants.low_rank import Product, Scaled


class NOLABases(AdapterHooks):
    """Makes one frozen set of bases for all layers: `num_basis` matrices of each factor's shape."""

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> SharedProjections:
        rows, key = hyper["rank"] * hyper["num_basis"], hyper["basis_prng_key"]
        return SharedProjections.covering(shapes.values(), rows, key, "nested", like.device)


@register("nola")
class NOLA(Product, Scaled):
    """§3: A and B are combinations of m frozen random matrices; the 2 m coefficients alone are trained.

    As in the authors' GPT-2 code the bases are U(±1/√m), A has a frozen random start and all coefficients
    begin at zero. Bases and start come from `basis_prng_key` and are not saved. Letter: M bases.
    """

    paper = "arXiv:2310.02556"
    equation = "W' = W + (α/r) (Σ βⱼ Bⱼ) (A₀ + Σ αᵢ Aᵢ), A₀, Aᵢ, Bⱼ frozen and random"
    count = "2 * num_basis"
    sized_by = "num_basis"
    hooks = NOLABases
    A0_RI: Tensor

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        num_basis: int = 512,
        basis_prng_key: int = 0,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.scale = self.scale_of(alpha, rank)
        (self.features, I), W_OI = context.shape, context.host.matrix()
        self.bases: SharedProjections = context.shared.to(W_OI.device)  # type: ignore[assignment, union-attr]
        self.gain = num_basis**-0.5
        source = generator("nola", basis_prng_key, context.name)
        start = context.full((rank, I)).copy_(uniform(rank, I, kaiming_bound(I, 3**-0.5), source))
        self.register_buffer("A0_RI", start, persistent=False)
        self.a_M, self.b_M = (nn.Parameter(context.full((num_basis,))) for _ in "ab")
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return None  # no matrix bounds the number of bases

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        return None if hyper["num_basis"] > 0 else f"num_basis must be at least 1; got {hyper['num_basis']}"

    def factors(self) -> tuple[Tensor, Tensor]:
        (R, I), M, dtype = self.A0_RI.shape, len(self.a_M), self.a_M.dtype
        A_RMI = self.bases.A_RI[: R * M, :I].to(dtype).unflatten(0, (R, M))
        B_PM = self.bases.B_OR[: self.features, : R * M].to(dtype).reshape(-1, M)  # P = O R
        a_R1M = (self.gain * self.a_M).expand(R, 1, M)
        A_RI = self.A0_RI.to(dtype) + product(a_R1M, A_RMI).squeeze(1)
        return product(B_PM, self.scale * self.gain * self.b_M[:, None]).view(-1, R), A_RI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is linear in β at a fixed α, so that no β is no update."""
        coefficients, dW_OI = self.b_M.clone(), self.weight(W_OI) - W_OI
        self.b_M.mul_(2)
        doubled_OI = self.weight(W_OI) - W_OI
        self.b_M.copy_(coefficients)
        torch.testing.assert_close(doubled_OI, 2 * dW_OI, rtol=1e-4, atol=1e-5)
