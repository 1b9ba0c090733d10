"""Variants that are themselves by what trains, and how: frozen factors, replaced gradients, drawn masks.

Shapes: O out, I in, R rank; layers of one matrix in double precision.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import inputs, lone, only, perturb, train
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import Injection, inject
from tests.adapters.test_parity_shared import Stack

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


# --- LoRA-Pro ----------------------------------------------------------------------------------------------


def given(adapter: Any, G_OI: Tensor) -> Tensor:
    """Set the factors' gradients, of which G is ∂L/∂(s B A); they are also returned, flat, A's first."""
    adapter.A_RI.grad = (adapter.scale * adapter.B_OR.T @ G_OI).detach()
    adapter.B_OR.grad = (adapter.scale * G_OI @ adapter.A_RI.T).detach()
    return torch.cat([adapter.A_RI.grad.flatten(), adapter.B_OR.grad.flatten()])


@pytest.mark.parametrize("moved", [True, False])
def test_lora_pro_s_step_is_the_least_squares_fit_that_is_nearest_to_lora_s(moved: bool) -> None:
    """Of all z with M z nearest to G: own + M⁺ (G - M own), where M z = s (B dA + dB A); also at B = 0."""
    injection, adapter, _ = begun("lora_pro", rank=3, alpha=6.0, mode="gradient")
    if moved:
        perturb(injection)
    A_RI, B_OR = adapter.A_RI.detach().clone(), adapter.B_OR.detach().clone()
    M = 2 * torch.cat(
        [torch.kron(B_OR, torch.eye(14)), torch.kron(torch.eye(10), A_RI.T.contiguous())], dim=1
    )
    G_OI, optimizer = full_gradient(), injection.optimizer(torch.optim.SGD, lr=0.1)
    own = given(adapter, G_OI)
    optimizer.step()
    steps = torch.cat([(A_RI - adapter.A_RI).flatten(), (B_OR - adapter.B_OR).flatten()]).detach() / 0.1
    assert_close(steps, own + torch.linalg.pinv(M) @ (G_OI.flatten() - M @ own))


@pytest.mark.parametrize(("mode", "moved"), [("gradient", 1.0), ("adamw", 0.2)])
def test_lora_pro_of_one_number_is_worked_out_by_hand(mode: str, moved: float) -> None:
    """a = 1, b = 2, G = 5: (2, 1) is along (b, a), and 2 · 2 + 1 · 1 = 5. Adam makes 1 of G: a fifth."""
    injection = inject(lone("linear", 1, 1), "lora_pro", target_modules="layer", rank=1, mode=mode)
    adapter, _ = only(injection)
    adapter.A_RI.data.fill_(1.0)
    adapter.B_OR.data.fill_(2.0)
    given(adapter, torch.full((1, 1), 5.0, dtype=F64))
    plain = mode == "gradient"
    injection.optimizer(torch.optim.SGD if plain else torch.optim.Adam, lr=0.5, weight_decay=0.0).step()
    assert adapter.A_RI.item() == pytest.approx(1 - 0.5 * 2 * moved)
    assert adapter.B_OR.item() == pytest.approx(2 - 0.5 * moved)


def test_lora_pro_of_full_rank_steps_as_full_fine_tuning_by_adamw() -> None:
    """To first order in the rate: B dA + dB A reaches any matrix, and the moments are those of W."""
    injection, adapter, W_OI = begun("lora_pro", rank=10)
    perturb(injection)
    before_OI, weight = adapter.weight(W_OI).detach(), nn.Parameter(W_OI.clone())
    optimizers = injection.optimizer(torch.optim.Adam, lr=1e-7), torch.optim.Adam([weight], lr=1e-7)
    for factor in (1.0, -0.3, 2.0):
        weight.grad = factor * full_gradient()
        given(adapter, weight.grad)
        for optimizer in optimizers:
            optimizer.step()
    moved_OI = (adapter.weight(W_OI) - before_OI).detach()
    assert_close(1e7 * moved_OI, 1e7 * (weight - W_OI).detach(), rtol=1e-4, atol=1e-4)


def test_lora_pro_s_moments_need_an_adam() -> None:
    with pytest.raises(ValueError, match=r"mode=adamw takes betas .* SGD has none; use .*mode=gradient"):
        begun("lora_pro", rank=3)[0].optimizer(torch.optim.SGD, lr=0.1)


# --- Diff pruning ------------------------------------------------------------------------------------------


def test_gates_are_drawn_by_step_with_the_gradient_of_the_hard_concrete_distribution() -> None:
    """z = clip(3 s - 1.5), s = σ(α + ln u - ln(1 - u)); inside, dz/dα = 3 s (1 - s); outside it is 0."""
    injection, adapter, W_OI = begun("diff_pruning", structured=False)
    perturb(injection)
    with torch.no_grad():
        adapter.gate_OI.sub_(5)
    injection.hooks.on_train_begin(10)
    found = []
    for step in (1, 1, 2):
        adapter.zero_grad()
        with injection.hooks.forward_context(Progress(step, 10)):
            u_OI = adapter.noise[:140].view(10, 14).clone()
            found.append(adapter.weight(W_OI))
            found[-1].sum().backward()
        s_OI = 1 / (1 + (1 - u_OI) / u_OI * (-adapter.gate_OI.detach()).exp())
        z_OI = (3 * s_OI - 1.5).clip(0, 1)
        assert_close(found[-1], W_OI + z_OI * adapter.D_OI)
        inside_OI = ((z_OI > 0) & (z_OI < 1)).double()
        assert 20 < inside_OI.sum() < 120
        assert_close(adapter.gate_OI.grad, adapter.D_OI.detach() * inside_OI * 3 * s_OI * (1 - s_OI))
        assert_close(adapter.D_OI.grad, z_OI)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    assert adapter.noise is None


def test_gates_are_open_as_often_as_the_penalty_says() -> None:
    """At α = 0.4 for entries and 0.8 for the whole: σ(0.4) σ(0.8) of 140 entries, and in the draws."""
    injection, adapter, _ = begun("diff_pruning", l0_weight=0.5)
    with torch.no_grad():
        for p, value in ((adapter.D_OI, 1.0), (adapter.gate_OI, 0.4), (adapter.group_gate_OI, 0.8)):
            p.fill_(value)
    expected = 140 / (1 + math.exp(-0.4)) / (1 + math.exp(-0.8))
    assert injection.hooks.regularizer().item() == pytest.approx(0.5 * expected)
    counts = []
    for step in range(1, 1001):
        with injection.hooks.forward_context(Progress(step, 1000)):
            counts.append(float((adapter.diff() != 0).sum()))
    assert sum(counts) / 1000 == pytest.approx(expected, rel=0.06)


def test_pruning_keeps_the_greatest_changes_of_all_matrices_as_they_are() -> None:
    """Of 132 entries the 13 greatest, wherever they are."""
    model = Stack()
    injection = inject(model, "diff_pruning", target_modules=["layers"], density=0.1)
    perturb(injection)
    before = torch.cat([dW_OI.flatten() for _, _, dW_OI in injection])
    injection.hooks.prune()
    threshold = before.abs().sort(descending=True).values[12]
    after = torch.cat([dW_OI.flatten() for _, _, dW_OI in injection])
    assert_close(after, before.where(before.abs() >= threshold, 0))
    assert all(dW_OI.any() for _, _, dW_OI in injection)


@pytest.mark.parametrize(("fixed_from", "found_at"), [(0.5, 6), (1.0, None)])
def test_after_the_search_the_entries_that_are_left_learn_on(fixed_from: float, found_at: int | None) -> None:
    """Ten steps: gates move up to the cut and rest after it; the mask stays, and what it keeps moves."""
    model, x = Stack(), torch.linspace(-1, 1, 30, dtype=F64).view(5, 6)
    more = {"density": 0.1, "fixed_from": fixed_from, "l0_weight": 0.01}
    injection = inject(model, "diff_pruning", target_modules=["layers"], **more)
    diffs, opening = list[Tensor](), list[Tensor]()

    def loss() -> Tensor:
        sites = injection.adapters.values()
        diffs.append(torch.cat([site.D_OI.detach().flatten() for site in sites]))
        opening.append(torch.cat([site.gate_OI.detach().flatten() for site in sites]))
        return (model(x) - 1).square().mean()

    train(injection, loss, steps=10)
    loss()
    first = 10 if found_at is None else found_at - 1
    assert [int((D != 0).sum()) for D in diffs] == [0, *[132] * (first - 1), *[13] * (11 - first)]
    assert [torch.equal(*pair) for pair in pairwise(opening)] == [*[False] * first, *[True] * (10 - first)]
    masks = [D != 0 for D in diffs[first:]]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert not any(torch.equal(*pair) for pair in pairwise(diffs))


def test_numbers_that_no_pruning_has_are_refused() -> None:
    for wrong in ({"density": 0.0}, {"density": 1.5}, {"fixed_from": 0.0}, {"l0_weight": -1.0}):
        with pytest.raises(ValueError, match="diff_pruning needs 0 < density <= 1, 0 < fixed_from <= 1"):
            begun("diff_pruning", **wrong)
