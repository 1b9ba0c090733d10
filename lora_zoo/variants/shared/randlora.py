"""RandLoRA: Full-rank parameter-efficient fine-tuning of large models (Albert et al., ICLR 2025).

Shapes: O out, I in, R rank; S the shorter side, L the longer one, N = ⌈S / R⌉ bases.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.randlora import RandLoraFormat
from lora_zoo.inits.random_bases import RandomBases, bases_of
from lora_zoo.variants.low_rank import Product, Scaled


class SharedBases(AdapterHooks):
    """Makes one frozen set of bases for all layers."""

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> RandomBases:
        key, projection = hyper["projection_prng_key"], hyper["projection"]
        every = shapes.values()
        return RandomBases(every, hyper["rank"], seed=key, projection=projection, device=like.device)


@register("randlora")
class RandLoRA(Product, Scaled):
    """§3.2: a sum of N frozen random products of rank r, each scaled inside and on the shorter side.

    λ begins at zero and γ at 1/S; A is the same in all products. A smaller rank has more parameters. The
    bases come from `projection_prng_key` and are not saved; the sparse ones of the appendix are left out.
    """

    paper = "arXiv:2502.00987"
    equation = "W' = W + (α/r) Σₙ Bₙ diag(λₙ) A diag(γₙ), transposed where O < I"
    count = "ceil(min(O, I) / R) * (R + min(O, I))"
    hooks = SharedBases
    peft = RandLoraFormat(
        "RandLora",
        {"lambda_RN": "randlora_lambda", "gamma_NS": "randlora_gamma"},
        {
            "rank": ("r", 32),
            "alpha": ("randlora_alpha", 640),
            "lora_dropout": ("randlora_dropout", 0.0),
            "projection_prng_key": ("projection_prng_key", 0),
        },
        conv1d=True,
    )
    paper_alpha = "20r"  # the official code's

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        projection: Literal["nested", "peft"] = "nested",
        projection_prng_key: int = 0,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        self.scale, self.shape = self.scale_of(alpha, rank), context.shape
        S, W_OI = min(context.shape), context.host.matrix()
        self.bases: RandomBases = context.shared.to(W_OI.device)  # type: ignore[assignment, union-attr]
        N = bases_of(S, rank)
        self.lambda_RN = nn.Parameter(context.full((rank, N)))
        self.gamma_NS = nn.Parameter(context.full((N, S), 1 / S))
        self.dropout = context.dropout(lora_dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        (O, I), (R, N), dtype = self.shape, self.lambda_RN.shape, self.lambda_RN.dtype
        A_RS = self.bases.A_RS[:R, : min(O, I)].to(dtype)
        thin_PS = (self.lambda_RN[:, :, None] * A_RS[:, None] * self.gamma_NS).flatten(0, 1)  # P = R N
        wide_LP = self.bases.B_LNR[: max(O, I), :N, :R].to(dtype).flatten(1)
        B_OP, A_PI = (wide_LP, thin_PS) if I <= O else (thin_PS.T, wide_LP.T)
        return self.scale * B_OP, A_PI

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is linear in λ at a fixed γ, so that no λ is no update."""
        first, dW_OI = self.lambda_RN.clone(), self.weight(W_OI) - W_OI
        self.lambda_RN.mul_(2)
        doubled_OI = self.weight(W_OI) - W_OI
        self.lambda_RN.copy_(first)
        torch.testing.assert_close(doubled_OI, 2 * dW_OI, rtol=1e-4, atol=1e-5)
