"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., ICLR 2024)."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.adapters.adapter import Product, Site, trainable
from lora_zoo.adapters.method import Method
from lora_zoo.adapters.randomness import derived_seed, kaiming_bound
from lora_zoo.adapters.registry import register


class Pair(nn.Module):
    """One frozen A (R, I_max) and B (O_max, R) for all layers, made from a seed and never stored.

    `nested`: each row of A and column of B has a seed of its own, so that a layer's slice does not depend on
    which other layers are adapted. `peft`: PEFT's draw, A then B, to the bit; its bound comes from I_max.
    """

    def __init__(
        self, O: int, I: int, rank: int, *, seed: int, projection: str, device: torch.device
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1; got {rank}")
        if device.type == "meta":
            A_RI, B_OR = torch.empty(rank, I, device=device), torch.empty(O, rank, device=device)
        elif projection == "peft":
            g = torch.Generator().manual_seed(seed)
            A_RI = torch.empty(rank, I).uniform_(-bound(I), bound(I), generator=g)
            B_OR = torch.empty(O, rank).uniform_(-bound(rank), bound(rank), generator=g)
        else:
            A_RI = torch.stack([ray(I, derived_seed(seed, "A", r)) for r in range(rank)])
            B_OR = torch.stack([ray(O, derived_seed(seed, "B", r)) for r in range(rank)], dim=1)
        self.register_buffer("A_RI", A_RI.to(device), persistent=False)
        self.register_buffer("B_OR", B_OR.to(device), persistent=False)

    A_RI: Tensor
    B_OR: Tensor


def bound(fan_in: int) -> float:
    return kaiming_bound(fan_in, gain=math.sqrt(2))


def ray(length: int, seed: int) -> Tensor:
    """U(-1, 1), prefix-stable in its length."""
    return 2 * torch.rand(length, generator=torch.Generator().manual_seed(seed)) - 1


class SharedPair(Method):
    @classmethod
    def shared(cls, shapes: Mapping[str, tuple[int, int]], device: torch.device, **hyper: Any) -> Pair:
        O, I = (max(side) for side in zip(*shapes.values(), strict=True))
        seed, projection = hyper["projection_prng_key"], hyper["projection"]
        return Pair(O, I, hyper["rank"], seed=seed, projection=projection, device=device)


@register("vera")
class VeRA(Product):
    """Eq. 2: h = W x + Λ_b B Λ_d A x, with A and B frozen, random and shared."""

    paper = "arXiv:2310.11454"
    equation = "W' = W + diag(b) B diag(d) A"
    count = "O + R"
    method = SharedPair
    inits = ("kaiming",)

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 256,
        init: str = "kaiming",
        d_initial: float = 0.1,
        projection: Literal["nested", "peft"] = "nested",
        projection_prng_key: int = 0,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(site)
        O, self.I = site.shape
        W_OI = site.host.matrix()
        self.pair: Pair = site.shared.to(W_OI.device)  # type: ignore[assignment, union-attr]
        self.gain = 1.0 if projection == "peft" else bound(self.I) * bound(rank)
        self.d_R, self.b_O = trainable(W_OI, (rank,), d_initial), trainable(W_OI, (O,))
        self.dropout = site.dropout(lora_dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        O, R = len(self.b_O), len(self.d_R)
        B_OR = self.pair.B_OR[:O, :R].to(self.b_O.dtype)
        A_RI = self.pair.A_RI[:R, : self.I].to(self.b_O.dtype)
        return self.b_O[:, None] * B_OR * (self.gain * self.d_R), A_RI
