"""Intrinsic dimension: random subspaces (Li et al., 2018), Fastfood and SAID (Aghajanyan et al., ACL 2021).

Letters: O out, I in, D = O I entries of W, d numbers that train, F the power of two from d on, N blocks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.dtypes import product
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.host import LayerHost
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import register

LARGEST = 2**29
"""Numbers of a dense P of one matrix (2 GiB in float32)."""


class Subspace(nn.Module):
    """The numbers θ (d,) that all matrices share."""

    def __init__(self, dimension: int, like: Tensor) -> None:
        super().__init__()
        self.theta_d = nn.Parameter(like.new_zeros(dimension))


class SubspaceHooks(AdapterHooks):
    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> Subspace:
        return Subspace(hyper["dimension"], like)


@register("intrinsic_dimension")
class IntrinsicDimension(Adapter):
    """§2-3: all matrices move in one random subspace of d dimensions; P is frozen, and made from a seed.

    Columns of P have the expected norm 1 on each matrix. `projection=dense` is Gaussian and takes D d numbers
    a matrix; `fastfood` stacks blocks H G Π H B of D numbers. `structured` is SAID: a trained gain a matrix.
    """

    title = "Intrinsic dimension"
    paper = "arXiv:2012.13255"
    equation = "W' = W + reshape(P θ), θ (d) shared by all matrices, P random and frozen; SAID: λ P θ"
    count = "1 if structured else 0"
    sized_by = "dimension"
    hooks = SubspaceHooks
    P_Dd: Tensor
    signs_NF: Tensor
    order_NF: Tensor
    gauss_NF: Tensor

    def __init__(
        self,
        context: LayerContext,
        *,
        dimension: int = 1024,
        projection: Literal["fastfood", "dense"] = "fastfood",
        structured: bool = False,
        projection_prng_key: int = 0,
    ) -> None:
        super().__init__(context)
        self.subspace: Subspace = context.shared  # type: ignore[assignment]
        like, source = context.full(()), generator("subspace", projection_prng_key, context.name)
        make = dense if projection == "dense" else fastfood
        for name, drawn in make(math.prod(context.shape), dimension, source).items():
            dtype = like.dtype if drawn.is_floating_point() else drawn.dtype
            self.register_buffer(name, drawn.to(like.device, dtype), persistent=False)
        self.dense = projection == "dense"
        self.gain = nn.Parameter(context.full((), 1.0)) if structured else None

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        d, D = hyper["dimension"], math.prod(shape)
        if d < 1:
            return f"dimension must be at least 1; got {d}"
        if hyper["projection"] == "dense" and d * D > LARGEST:
            return (
                f"a dense P would hold {D:,} x {d:,} numbers, more than {LARGEST:,}; use projection=fastfood"
            )
        return None

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        return super().trainable_count(matrices) + int(matrices[0][1]["dimension"])

    def moved(self) -> Tensor:
        """P θ (D,)."""
        theta_d = self.subspace.theta_d
        if self.dense:
            return product(self.P_Dd, theta_d[:, None])[:, 0]
        F = self.signs_NF.shape[1]
        mixed_NF = hadamard(self.signs_NF * nn.functional.pad(theta_d, (0, F - len(theta_d))))
        return hadamard(self.gauss_NF * mixed_NF.gather(1, self.order_NF)).flatten()

    def update(self, W_OI: Tensor) -> Tensor:
        """ΔW (O, I), in the dtype of θ."""
        moved_D = self.moved()[: W_OI.numel()]
        return (moved_D if self.gain is None else self.gain * moved_D).view(W_OI.shape)

    def weight(self, W_OI: Tensor) -> Tensor:
        return W_OI + self.update(W_OI)

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y = host.base(x)  # apart from ΔW, which a narrow W would round
        return y + host.times(x, self.update(host.matrix())).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """ΔW is linear in θ."""
        theta_d, dW_OI = self.subspace.theta_d.clone(), self.weight(W_OI) - W_OI
        self.subspace.theta_d.mul_(2)
        doubled_OI = self.weight(W_OI) - W_OI
        self.subspace.theta_d.copy_(theta_d)
        torch.testing.assert_close(doubled_OI, 2 * dW_OI, rtol=1e-4, atol=1e-5)


def dense(D: int, d: int, source: torch.Generator) -> dict[str, Tensor]:
    """P (D, d) of N(0, 1/D)."""
    return {"P_Dd": torch.randn(D, d, generator=source, dtype=torch.float64) / D**0.5}


def fastfood(D: int, d: int, source: torch.Generator) -> dict[str, Tensor]:
    """B, Π and the scaled G of the N blocks (F, F) that have D rows together (Le et al., 2013)."""
    F = 2 ** math.ceil(math.log2(d))
    N = -(-D // F)
    gauss_NF = torch.randn(N, F, generator=source, dtype=torch.float64)
    return {
        "signs_NF": 2.0 * torch.randint(2, (N, F), generator=source) - 1,
        "order_NF": torch.stack([torch.randperm(F, generator=source) for _ in range(N)]),
        "gauss_NF": gauss_NF / gauss_NF.norm(dim=1, keepdim=True) / D**0.5,
    }


def hadamard(x_NF: Tensor) -> Tensor:
    """H x of each row, H (F, F) Walsh-Hadamard of entries ±1, in F log F steps."""
    N, F = x_NF.shape
    half = 1
    while half < F:
        first, second = x_NF.view(N, -1, 2, half).unbind(2)
        x_NF, half = torch.stack([first + second, first - second], dim=2).view(N, F), 2 * half
    return x_NF
