"""L-LoRA: the tangent of LoRA at its start, by hand and by its identities."""

import pytest
import torch
from torch.testing import assert_close

from lora_zoo.conformance.cases import inputs, lone, only, perturb
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def linearised(name="default", init="init_ab", seed=0, model=None, **more):
    """A linear layer with one adapter of rank 4."""
    model = lone("linear").requires_grad_(False) if model is None else model
    own = inject(model, "l_lora", target_modules=["layer"], rank=4, init=init, seed=seed, name=name, **more)
    return model, own, only(own)[0]


def test_the_tangent_by_hand():
    _, own, adapter = linearised(alpha=8)
    with torch.no_grad():
        for tensor, value in (
            (adapter.A0_RI, 1.0),
            (adapter.B0_OR, 2.0),
            (adapter.A_RI, 5.0),
            (adapter.B_OR, 3.0),
        ):
            tensor.zero_()[0, 0] = value
    dW_OI = own.update("layer").dW_OI
    # s = 2: 2 (2·1 + (3 - 2)·1 + 2·(5 - 1)) = 22, where LoRA has 2·3·5 = 30
    assert dW_OI[0, 0].item() == pytest.approx(22) and int((dW_OI.abs() > 1e-9).sum()) == 1
    _, own, adapter = linearised(init="symmetric", alpha=8)
    with torch.no_grad():
        for tensor, value in (
            (adapter.A0_RI, 1.0),
            (adapter.B0_OR, 2.0),
            (adapter.A_RI, 5.0),
            (adapter.B_OR, 3.0),
        ):
            tensor.zero_()[0, 0] = value
    assert own.update("layer").dW_OI[0, 0].item() == pytest.approx(18), "B₀ A₀ is taken off W"


@pytest.mark.parametrize("init", ["init_ab", "symmetric", "orthogonal_pair", "olora"])
def test_it_is_lora_at_its_start_and_both_factors_learn(init):
    model, _, adapter = linearised(init=init)
    other = lone("linear").requires_grad_(False)
    inject(other, "lora", target_modules=["layer"], rank=4, init=init)
    x = inputs("linear")
    assert_close(model(x), other(x), **CLOSE)
    assert adapter.A0_RI.any() and adapter.B0_OR.any()
    mine, theirs = (
        torch.autograd.grad(of(x).square().sum(), [p for p in of.parameters() if p.requires_grad])
        for of in (model, other)
    )
    for gradient, expected in zip(mine, theirs, strict=True):
        assert_close(gradient, expected, **CLOSE)
        assert gradient.any()


def test_it_is_affine_and_adapters_of_one_start_add_exactly():
    """C-49: ΔW(φ₁ + φ₂ - φ₀) = ΔW(φ₁) + ΔW(φ₂) - ΔW(φ₀), and a mean of factors is the mean of ΔW."""
    model, first, one = linearised("one")
    _, second, two = linearised("two", model=model)
    _, third, both = linearised("both", model=model)
    assert torch.equal(one.A0_RI, two.A0_RI) and torch.equal(one.B0_OR, two.B0_OR)
    at_start = first.update("layer").dW_OI
    for seed, own in enumerate((first, second)):
        perturb(own, seed=seed)
    of = [own.update("layer").dW_OI for own in (first, second)]
    with torch.no_grad():
        both.A_RI.copy_(one.A_RI + two.A_RI - both.A0_RI)
        both.B_OR.copy_(one.B_OR + two.B_OR - both.B0_OR)
    assert_close(third.update("layer").dW_OI, sum(of) - at_start, **CLOSE)
    with torch.no_grad():
        both.A_RI.copy_((one.A_RI + two.A_RI) / 2)
        both.B_OR.copy_((one.B_OR + two.B_OR) / 2)
    mean = third.update("layer").dW_OI
    adapters_of(model).activate("one", "two", composition="average")
    assert_close(model.layer.weight, first.base_weight("layer") + mean, **CLOSE)
    assert float((one.B_OR @ one.A_RI).detach().sub(of[0] / one.scale).abs().max()) > 1e-2, (
        "LoRA's is another"
    )


def test_a_tangent_at_the_usual_start_forgets_A():
    """C-64: with B₀ = 0 it is s B A₀; such starts are refused."""
    _, own, adapter = linearised()
    perturb(own)
    adapter.B0_OR.zero_()
    assert_close(own.update("layer").dW_OI, (adapter.scale * adapter.B_OR @ adapter.A0_RI).detach(), **CLOSE)
    for init in ("kaiming", "zero_a", "both_zero"):
        with pytest.raises(ValueError, match=f"l_lora.*{init}|{init}.*l_lora"):
            linearised(init=init)
