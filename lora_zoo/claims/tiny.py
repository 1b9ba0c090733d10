"""A tiny model for statements about the first step: two linear layers, q_proj and v_proj, of one width."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.injection.inject import Injection, inject

WIDTH, TOKENS = 64, 32


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.q_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.v_proj(self.q_proj(x).tanh())


def loss(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(TOKENS, WIDTH, generator=generator).double() for _ in range(2))
    return (model(x) - y).square().mean()


def adapted(variant: str = "lora", **hyper: Any) -> Injection:
    """Tiny with an adapter on both matrices, after a backward pass."""
    injection = inject(Tiny(), variant, target_modules=["q", "v"], **{"rank": 4} | hyper)
    loss(injection.model).backward()
    return injection


def gradients(injection: Injection, factor: str) -> list[Tensor]:
    """∂L/∂factor of each matrix."""
    found = [p.grad for name, p in injection.named_parameters().items() if name.endswith(factor)]
    return [gradient for gradient in found if gradient is not None]


def moved(injection: Injection) -> Injection:
    """Every trainable tensor moved by noise, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double())
    return injection
