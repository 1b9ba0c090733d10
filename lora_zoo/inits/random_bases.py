"""RandLoRA's frozen random bases, shared by all layers of a model.

Shapes: L the longer and S the shorter side of a matrix, N bases of R columns each.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lora_zoo.core.seeding import derived_seed
from lora_zoo.inits.shared_projections import ray


class RandomBases(nn.Module):
    """One frozen A (R, S_max) and N B's (L_max, N_max, R), of unit variance, from a seed and never stored.

    `nested`: each row and column has a seed of its own, so that a layer's slice does not depend on the other
    layers. `peft`: PEFT's draw, rounded to bfloat16 as it is there, to the bit.
    """

    A_RS: Tensor
    B_LNR: Tensor

    def __init__(
        self,
        shapes: Iterable[tuple[int, int]],
        rank: int,
        *,
        seed: int,
        projection: str,
        device: torch.device,
    ) -> None:
        super().__init__()
        sides = [max(side) for side in zip(*shapes, strict=True)]
        (S, L), N = sorted(sides), bases_of(min(sides), rank)
        if device.type == "meta":
            A_RS, B_LNR = torch.empty(rank, S, device=device), torch.empty(L, N, rank, device=device)
        elif projection == "peft":
            source = torch.Generator().manual_seed(seed)
            A_RS = _drawn(rank, S, source)
            B_LNR = torch.stack([_drawn(L, rank, source) for _ in range(N)], dim=1)
            A_RS, B_LNR = (basis / basis.std() for basis in (A_RS, B_LNR))
        else:
            A_RS = torch.stack([ray(S, derived_seed(seed, "A", r)) for r in range(rank)])
            columns = [ray(L, derived_seed(seed, "B", n, r)) for n in range(N) for r in range(rank)]
            A_RS, B_LNR = (math.sqrt(3) * b for b in (A_RS, torch.stack(columns, 1).unflatten(1, (N, rank))))
        self.register_buffer("A_RS", A_RS.float().to(device), persistent=False)
        self.register_buffer("B_LNR", B_LNR.float().to(device), persistent=False)


def _drawn(rows: int, fan_in: int, source: torch.Generator) -> Tensor:
    bound = fan_in**-0.5
    return torch.empty(rows, fan_in, dtype=torch.bfloat16).uniform_(-bound, bound, generator=source)


def bases_of(shorter: int, rank: int) -> int:
    """The number of bases that reach full rank."""
    return math.ceil(shorter / rank)
