"""VeRA's frozen random projections, shared by all layers of a model."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lora_zoo.core.seeding import derived_seed, kaiming_bound


class SharedProjections(nn.Module):
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

    @classmethod
    def covering(
        cls, shapes: Iterable[tuple[int, int]], rank: int, seed: int, projection: str, device: torch.device
    ) -> "SharedProjections":
        """A pair as large as the largest sides of these shapes (O, I)."""
        O, I = (max(side) for side in zip(*shapes, strict=True))
        return cls(O, I, rank, seed=seed, projection=projection, device=device)

    A_RI: Tensor
    B_OR: Tensor


def bound(fan_in: int) -> float:
    return kaiming_bound(fan_in, gain=math.sqrt(2))


def ray(length: int, seed: int) -> Tensor:
    """U(-1, 1), prefix-stable in its length."""
    return 2 * torch.rand(length, generator=torch.Generator().manual_seed(seed)) - 1


def gain_of(projection: str, I: int, rank: int) -> float:
    """The factor that scales projections of U(-1, 1) entries on one layer."""
    return 1.0 if projection == "peft" else bound(I) * bound(rank)
