"""Variants that are themselves by what trains, and how: frozen factors, replaced gradients, drawn masks.

Shapes: O out, I in, R rank; layers of one matrix in double precision.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import inputs, lone, only, train
from lora_zoo.injection.inject import Injection, inject

F64 = torch.float64


def begun(name: str, **hyper: Any) -> tuple[Injection, Any, Tensor]:
    """A layer (10, 14) with the variant at rank 3, its one adapter, and W."""
    injection = inject(lone("linear"), name, target_modules="layer", **hyper)
    adapter, host = only(injection)
    return injection, adapter, host.matrix().detach()


def regression(model: nn.Module) -> Callable[[], Tensor]:
    """The loss of a linear regression, a function of the model's weights."""
    x, target_O = inputs("linear"), torch.linspace(-1, 1, 10, dtype=F64)
    return lambda: (model(x) - target_O).square().mean()


def full_gradient() -> Tensor:
    """∂L/∂W (O, I) of that regression at the layer's own W."""
    plain = lone("linear")
    regression(plain)().backward()
    G_OI: Tensor = plain.layer.weight.grad
    return G_OI


# --- Asymmetric LoRA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["A", "B"])
@pytest.mark.parametrize("init", ["orthogonal", "right_vectors", "kaiming"])
def test_an_update_stays_in_the_frozen_space_and_begins_as_the_projected_gradient(
    init: str, trained: str
) -> None:
    """With SGD the first step is -η s² G AᵀA, or -η s² B Bᵀ G where B is frozen."""
    more = {"rank": 3, "alpha": 6.0, "init": init, "trained": trained}
    injection, adapter, W_OI = begun("asymmetric_lora", **more)
    frozen = (adapter.A_RI if trained == "B" else adapter.B_OR.T).detach().clone()
    if init != "kaiming":
        assert_close(frozen @ frozen.T, torch.eye(3, dtype=F64))
    if init == "right_vectors":
        U_OO, _, Vh_II = torch.linalg.svd(W_OI)
        own = Vh_II[:3] if trained == "B" else U_OO.T[:3]
        assert_close((frozen @ own.T).abs(), torch.eye(3, dtype=F64))
    loss, gram, G_OI = regression(injection.model), frozen.T @ frozen, full_gradient()
    train(injection, loss, steps=1, optimizer=torch.optim.SGD(injection.parameters(), lr=0.1))
    first_OI = -0.4 * (G_OI @ gram if trained == "B" else gram @ G_OI)
    assert_close((adapter.weight(W_OI) - W_OI).detach(), first_OI)
    train(injection, loss, steps=5)
    assert torch.equal(frozen, adapter.A_RI if trained == "B" else adapter.B_OR.T)
    adapter.law(W_OI)


def test_asymmetric_lora_that_starts_as_lora_fa_walks_as_lora_fa_does() -> None:
    walks = []
    for name in ("asymmetric_lora", "lora_fa"):
        injection, adapter, W_OI = begun(name, rank=3, init="kaiming")
        train(injection, regression(injection.model), steps=5)
        walks.append(adapter.weight(W_OI).detach())
    assert_close(*walks)
