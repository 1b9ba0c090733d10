"""Second derivatives through kernels are those of ordinary operations, and of the merged twin."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.testing import assert_close

from lora_zoo import inject
from lora_zoo.conformance.cases import MATRIX, adapt, perturb
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS

KERNELS = [name for name in MATRIX if VARIANTS[name].kernel]
X = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def net(name, p=0.0, plain=False):
    """Two adapted layers: the second one's input depends on the first one's parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh()).double().train()
    injection = adapt(model, name, targets=["0", "2"], **({"lora_dropout": p} if p else {}))
    perturb(injection)
    for adapter in injection.adapters.values() if plain else ():
        adapter.register_forward_hook(lambda *_: None)
    return model, injection


def input_penalty(name, **more):
    """The gradients of a loss of ∂y/∂x with respect to x and to every parameter that it depends on."""
    model, injection = net(name, **more)
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    wanted = [x, *injection.parameters()]
    return torch.autograd.grad(g.square().sum(), wanted, allow_unused=True)


def parameter_penalty(name, **more):
    """The gradients of the squared norm of the loss's gradient: a product with the Hessian."""
    model, injection = net(name, **more)
    own = injection.parameters()
    found = torch.autograd.grad(model(X).square().sum(), own, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in found), own)


def takes(name, p):
    return not p or "lora_dropout" in hyperparameters(VARIANTS[name])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", KERNELS)
def test_products_with_the_hessian_are_those_of_ordinary_operations(name, p):
    if not takes(name, p):
        pytest.skip("has no dropout")
    for penalty in (input_penalty, parameter_penalty):
        try:
            found, expected = penalty(name, p=p), penalty(name, p=p, plain=True)
        except ValueError as refusal:
            assert "lora_dropout" in str(refusal)
            pytest.skip("refuses dropout with its residual start")
        for got, want in zip(found, expected, strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_the_hessian_is_that_of_the_merged_twin(name):
    model, injection = net(name)
    found = hessian(lambda x: model(x).square().sum(), X[:1])
    injection.merge()
    expected = hessian(lambda x: model(x).square().sum(), X[:1])
    assert expected.any()
    assert_close(found, expected, rtol=1e-7, atol=1e-9)


class Own(torch.Tensor):
    """A subclass that has operations of its own."""


def test_subclasses_and_traces_take_ordinary_operations():
    model = nn.Sequential(nn.Linear(4, 4))
    injection = inject(model, "lora", rank=2, target_modules=["0"])
    adapter, host = injection.adapters["0"], injection.matrices["0"].host
    assert adapter.path(torch.ones(2, 4), host) == "fused"
    assert "type" in adapter.path(torch.ones(2, 4).as_subclass(Own), host)
    traced = torch.jit.trace(model, torch.ones(2, 4))
    assert "LoraFunction" not in str(traced.inlined_graph)
    assert_close(traced(torch.ones(3, 4)), model(torch.ones(3, 4)))
