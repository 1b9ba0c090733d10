"""Muon: momentum whose matrix is replaced by its nearest orthogonal one.

https://kellerjordan.github.io/posts/muon. torch.optim.Muon orthogonalises in bfloat16, one matrix at a time,
and was about 25 times slower than this on a CPU without bfloat16 arithmetic.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, iterations: int = 5
    ) -> None:
        matrices = list(params)
        shapes = {matrix.shape for matrix in matrices}
        groups = [[matrix for matrix in matrices if matrix.shape == shape] for shape in sorted(shapes)]
        super().__init__(
            [{"params": group} for group in groups],
            {"lr": lr, "momentum": momentum, "iterations": iterations},
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            gradient_NOI = torch.stack([matrix.grad for matrix in group["params"]])
            state = self.state[group["params"][0]]
            buffer_NOI = state.setdefault("momentum", torch.zeros_like(gradient_NOI))
            buffer_NOI.lerp_(gradient_NOI, 1 - group["momentum"])
            update_NOI = orthogonalized(gradient_NOI.lerp(buffer_NOI, group["momentum"]), group["iterations"])
            outputs, inputs = update_NOI.shape[1:]
            rate = group["lr"] * max(1.0, outputs / inputs) ** 0.5
            for matrix_OI, update_OI in zip(group["params"], update_NOI, strict=True):
                matrix_OI.add_(update_OI, alpha=-rate)


def orthogonalized(matrix_NOI: Tensor, iterations: int) -> Tensor:
    """Newton-Schulz with the quintic of the reference code: singular values end near 1, not at 1."""
    wide = matrix_NOI.mT if matrix_NOI.shape[-2] > matrix_NOI.shape[-1] else matrix_NOI
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.mT if matrix_NOI.shape[-2] > matrix_NOI.shape[-1] else wide
