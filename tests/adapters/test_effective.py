"""Kept effective weights: whatever is done between two passes, the second is the model's own."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from lora_zoo.conformance.cases import perturb
from lora_zoo.injection.adapter_set import AdapterSet, adapters_of
from lora_zoo.injection.inject import inject
from tests.adapters.test_switching import ADAPTERS, Net

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def net() -> Net:
    made = Net().double().eval()
    for name in ("lora", "dora", "ia3", "bitfit", "hydralora"):
        perturb(inject(made, name, name=name, **ADAPTERS[name]), 0.3, seed=len(name))
    perturb(inject(made, "dylora", name="dylora", target_modules=["first", "last"], rank=4, alpha=4), 0.3)
    perturb(inject(made, "vera", name="vera", target_modules=["last"], rank=4), 0.3)
    adapters_of(made).activate("lora")
    return made


def tensor_of(adapters: AdapterSet, name: str) -> Tensor:
    """One of the tensors that an adapter trains: B, DoRA's magnitudes, VeRA's b."""
    return [*next(iter(adapters[name].adapters.values())).parameters()][-1]


WRITABLE = ("lora", "dora", "ia3", "bitfit", "dylora", "vera")
writable = st.sampled_from(WRITABLE)
Change = Callable[[Net, AdapterSet, str], object]


@torch.no_grad()
def in_place(model: Net, adapters: AdapterSet, name: str) -> None:
    tensor_of(adapters, name).mul_(1.5)


def through_data(model: Net, adapters: AdapterSet, name: str) -> None:
    tensor_of(adapters, name).data.mul_(-1.2)


def replaced_data(model: Net, adapters: AdapterSet, name: str) -> None:
    tensor = tensor_of(adapters, name)
    tensor.data = tensor.data + 0.1


def base_replaced(model: Net, adapters: AdapterSet, name: str) -> None:
    weight = model.first.layer.weight
    weight.data = 0.9 * weight.data


def scale(model: Net, adapters: AdapterSet, name: str) -> None:
    for adapter in adapters["lora"].adapters.values():
        adapter.scale *= 1.1


@torch.no_grad()
def buffer(model: Net, adapters: AdapterSet, name: str) -> None:
    adapters.activate("vera")
    model(torch.ones(1, 2, 6, dtype=torch.float64))
    for written in adapters["vera"].shared.buffers():
        written.add_(0.05)


@torch.no_grad()
def base_weight(model: Net, adapters: AdapterSet, name: str) -> None:
    model.last.weight  # noqa: B018 - reading the effective weight leaves nothing behind
    model.last.layer.weight.mul_(1.1)
    model.first.layer.bias.add_(0.1)


def activate(model: Net, adapters: AdapterSet, name: str) -> None:
    adapters.activate(name)


def several(model: Net, adapters: AdapterSet, name: str) -> None:
    adapters.activate("lora", "bitfit", weights=[0.5, -1.0])


def without_weight(model: Net, adapters: AdapterSet, name: str) -> None:
    adapters.activate("hydralora")


def none(model: Net, adapters: AdapterSet, name: str) -> None:
    adapters.activate()


def loaded(model: Net, adapters: AdapterSet, name: str) -> None:
    state = adapters[name].state_dict()
    adapters[name].load_state_dict({key: 0.9 * own for key, own in state.items()})


def hook(model: Net, adapters: AdapterSet, name: str) -> None:
    adapter = next(iter(adapters[name].adapters.values()))
    adapter.register_forward_hook(lambda module, given, y: 1.1 * y)


def hook_of_the_layer(model: Net, adapters: AdapterSet, name: str) -> None:
    model.first.layer.register_forward_hook(lambda module, given, y: 1.1 * y)


def merged_and_back(model: Net, adapters: AdapterSet, name: str) -> None:
    adapters.activate("dora")
    adapters.merge()
    adapters.unmerge()


CHANGES: list[Change] = [
    in_place,
    through_data,
    replaced_data,
    base_replaced,
    scale,
    buffer,
    base_weight,
    activate,
    several,
    without_weight,
    none,
    loaded,
    hook,
    hook_of_the_layer,
    merged_and_back,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_pass_after_a_change_is_the_models_own(change):
    check_after([(change, "lora")])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), writable), min_size=2, max_size=6))
def test_a_pass_after_any_changes_is_the_models_own(changes):
    check_after(changes)


def check_after(changes: list[tuple[Change, str]]) -> None:
    model = net()
    adapters, x = adapters_of(model), torch.randn(2, 3, 6, dtype=torch.float64)
    with torch.no_grad(), adapters.effective():
        model(x)
        for change, name in changes:
            change(model, adapters, name)
            kept = model(x)
            assert_close(kept, own_pass(model, x), **CLOSE)


def own_pass(model: nn.Module, x: Tensor) -> Tensor:
    """The output without kept weights, which passes with gradients never use."""
    with torch.enable_grad():
        return model(x).detach()


def test_layers_are_plain_in_a_pass_and_only_there():
    model = net()
    calls = []
    for adapter in adapters_of(model)["lora"].adapters.values():
        adapter.forward = lambda *given, own=adapter.forward: calls.append(1) or own(*given)  # type: ignore
        adapter.fused = None
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    with torch.no_grad(), adapters_of(model).effective() as kept:
        model(x)
        assert not calls and kept.memory == 6 * 6 * 8 + 6 * 4 * 8
        model.first(x[0])
        assert len(calls) == 1, "a layer that is called alone may be called after anything"
        model.train()(x)
        assert len(calls) == 3
    with torch.no_grad():
        model.eval()(x)
    assert len(calls) == 5


def test_outputs_are_those_of_the_merged_model_to_the_bit():
    model, x = net().float(), torch.randn(2, 3, 6)
    adapters = adapters_of(model)
    for name in WRITABLE:
        adapters.activate(name)
        with torch.no_grad():
            with adapters.effective():
                kept = model(x)
            adapters.merge()
            assert torch.equal(kept, model(x)), name
            adapters.unmerge()


def test_gradients_autocast_and_swapped_parameters_take_the_ordinary_way():
    model, x = net(), torch.randn(2, 3, 6, dtype=torch.float64)
    adapters = adapters_of(model)
    expected = own_pass(model, x)
    with adapters.effective():
        model(x).sum().backward()
        assert all(p.grad is not None for p in adapters["lora"].parameters())
        with torch.no_grad():
            own = {name: 2 * p.detach() for name, p in model.named_parameters() if "B_OR" in name}
            swapped = functional_call(model, own, x)
            assert not torch.allclose(swapped, expected, atol=1e-3)
            with torch.enable_grad():
                assert_close(swapped, functional_call(model, own, x).detach(), **CLOSE)
            assert_close(model(x), expected, **CLOSE)
    narrow = net().float()
    with torch.no_grad(), torch.autocast("cpu"):
        plain = narrow(x.float())
        with adapters_of(narrow).effective():
            assert torch.equal(narrow(x.float()), plain)


@pytest.mark.parametrize("memory, kept", [(0, 0), (6 * 6 * 8 - 1, 6 * 4 * 8), (6 * 6 * 8, 6 * 6 * 8)])
def test_memory_is_bounded_and_what_is_left_out_is_told(memory, kept):
    model = net()
    with adapters_of(model).effective(max_memory=memory) as weights:
        assert weights.memory == kept
        told = weights.left_out
        assert told["attention.in_proj_weight"] == "its module reads it by itself"
        assert sum("bytes" in reason for reason in told.values()) == (2 if not memory else 1)


def test_a_negative_memory_is_refused():
    with pytest.raises(ValueError, match="max_memory is a number of bytes, 0 or more; got -1"):
        contextlib.ExitStack().enter_context(adapters_of(net()).effective(max_memory=-1))


def test_a_narrow_base_keeps_its_own_way():
    model, x = net().to(torch.bfloat16), torch.randn(2, 3, 6).to(torch.bfloat16)
    with torch.no_grad():
        plain = model(x)
        with adapters_of(model).effective() as kept:
            assert torch.equal(model(x), plain) and not kept.memory
            assert "would lose a small change" in kept.left_out["first"]
