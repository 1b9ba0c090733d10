"""What a layer does beside its product stays: hooks of any time, a replaced forward, pruning."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from lora_zoo import adapters_of, inject
from lora_zoo.conformance.cases import MATRIX, adapt, perturb
from lora_zoo.core.variants import VARIANTS

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def pre_hook(layer):
    layer.register_forward_pre_hook(lambda module, given: (given[0] * 3 + module.in_features,))


def hook(layer):
    layer.register_forward_hook(lambda module, given, y: torch.relu(y) * 2 + given[0])


def replaced(layer):
    """As accelerate does it."""
    plain = layer.forward
    layer.forward = lambda x: plain(x) + 1


def pruned(layer):
    """Its pre-hook computes the weight anew."""
    prune.random_unstructured(layer, "weight", amount=0.5)


def net(change=lambda layer: None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval()
    change(model[0])
    return model


POINTWISE = [name for name in MATRIX if VARIANTS[name].pointwise and VARIANTS[name].identity_at_start]


@pytest.mark.parametrize("change", [pre_hook, hook, replaced, pruned])
@pytest.mark.parametrize("name", ["lora", "dora", "vera", "hra", "ia3"])
def test_the_model_at_step_zero_is_the_base(name, change):
    model = net(change)
    expected = model(X)
    adapt(model, name, targets=["0"])
    assert_close(model(X), expected)


@pytest.mark.parametrize("change", [pre_hook, hook])
@pytest.mark.parametrize("name", POINTWISE)
def test_hooks_see_the_adapted_layer_on_every_path(name, change):
    """With one adapter, with two of which one changes nothing, and merged."""
    model = net(change)
    injection = adapt(model, name, targets=["0"])
    perturb(injection)
    expected = model(X)
    inject(model, "lora", rank=2, target_modules=["0"], name="idle")
    adapters_of(model).activate(injection.name, "idle")
    assert_close(model(X), expected)
    injection.activate()
    injection.merge()
    assert_close(model(X), expected)
    injection.unmerge()
    assert_close(copy.deepcopy(model)(X), expected)
    adapters_of(model).remove()
    assert_close(model(X), net(change)(X))


def test_a_replaced_forward_is_called_as_peft_calls_it():
    model = net(replaced)
    injection = inject(model, "lora", rank=2, alpha=4, target_modules=["0"])
    perturb(injection)
    theirs = peft.get_peft_model(net(replaced), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    layer, (adapter,) = theirs.base_model.model[0], injection.adapters.values()
    with torch.no_grad():
        layer.lora_A.default.weight.copy_(adapter.A_RI)
        layer.lora_B.default.weight.copy_(adapter.B_OR)
    assert_close(model(X), theirs(X))


def test_hooks_registered_after_inject_are_called_once_and_removed_hooks_are_not():
    model, calls = net(), []
    layer = model[0]
    inject(model, "lora", rank=2, target_modules=["0"])
    handles = [m.register_forward_hook(lambda *_: calls.append(1)) for m in (layer, model[0])]
    model(X)
    assert len(calls) == 2
    handles[0].remove()
    handles[1].remove()
    model(X)
    assert len(calls) == 2 and "forward" not in vars(layer)


def test_a_hook_that_raises_leaves_the_layer_as_it_was():
    model = net()
    layer = model[0]
    inject(model, "lora", rank=2, target_modules=["0"])
    handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(X)
    assert "forward" not in vars(layer)
    handle.remove()
    assert model(X).isfinite().all()


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_of_every_module_see_the_layer(kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
    seen = []
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    hook = register(lambda module, *_: seen.append(module) if isinstance(module, nn.Linear) else None)
    layer = model[0]
    try:
        inject(model, "lora", rank=2, target_modules=["0"])
        model(x)
    finally:
        hook.remove()
    assert seen == [layer]


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_of_the_base_are_called(register):
    model, called = net(), []
    getattr(model[0], register)(lambda *given: called.append(given[0]))
    perturb(inject(model, "lora", rank=2, target_modules=["0"]))
    model(X.clone().requires_grad_()).sum().backward()
    assert len(called) == 1


@pytest.mark.parametrize("name", ["lora", "dora", "vera"])
def test_transforms_of_torch_func_give_the_gradients_of_backward(name):
    model = net()
    perturb(adapt(model, name, targets=["0"]))
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    loss({n: p for n, p in model.named_parameters() if p.requires_grad}, X).backward()
    summed = torch.func.grad(loss)(trained, X)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trained, X[:, None])
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_close(summed[key], parameter.grad)
            assert_close(each[key].sum(dim=0), parameter.grad)
