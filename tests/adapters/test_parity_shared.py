"""Variants with shared, routed or freezing tensors against PEFT, or where it lacks them their papers.

Shapes: O out, I in, R rank; layers in double precision unless PEFT is asked.
"""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_zoo.injection.inject import inject
from tests.adapters.adapter_cases import inputs, lone, perturb, train


class Stack(nn.Module):
    """Three square layers of one shape and one of another."""

    def __init__(self, width=6, out=4):
        super().__init__()
        torch.manual_seed(0)
        sizes = [(width, width)] * 3 + [(width, out)]
        self.layers = nn.ModuleList(nn.Linear(i, o, dtype=torch.float64) for i, o in sizes)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def stacked(name, **hyper):
    """(model, injection, x), every trainable tensor moved away from its start."""
    model = Stack()
    injection = inject(model, name, target_modules=["layers"], **hyper)
    perturb(injection)
    return model, injection, torch.randn(5, 6, dtype=torch.float64)


def updates(injection):
    return {name: dW_OI for name, _, dW_OI in injection}


def loss_of(model, x):
    return (model(x) - torch.linspace(-1, 1, 4, dtype=x.dtype)).square().mean()


# --- Tied-LoRA ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha, scale", [("auto", 1.0), (6.0, 2.0)])
def test_tied_lora_is_s_v_b_u_a_with_one_pair_a_shape(alpha, scale):
    _, injection, _ = stacked("tied_lora", rank=3, alpha=alpha)
    state, seen = injection.state_dict(), updates(injection)
    assert sum(t.numel() for n, t in state.items() if n.startswith("shared.")) == 3 * (6 + 6) + 3 * (4 + 6)
    for name, dW_OI in seen.items():
        pair = f"shared.{len(dW_OI)}x6"
        expected = torch.zeros_like(dW_OI)
        for o in range(len(dW_OI)):
            for r in range(3):
                weight = state[f"{name}.v_O"][o] * state[f"{pair}.B_OR"][o, r] * state[f"{name}.u_R"][r]
                expected[o] += scale * weight * state[f"{pair}.A_RI"][r]
        assert_close(dW_OI, expected)


def test_fixed_scales_give_every_matrix_of_a_shape_one_update():
    """The paper's TL5; of as many numbers as one LoRA, for all layers together."""
    _, injection, _ = stacked("tied_lora", rank=3, scales="fixed")
    first, second, third, other = updates(injection).values()
    assert_close([second, third], [first, first])
    assert other.shape != first.shape
    assert injection.trainable() == 3 * (6 + 6) + 3 * (4 + 6)
    assert not any(name.startswith("layers") for name in injection.named_parameters())


def test_alone_and_with_fixed_scales_tied_lora_trains_as_lora():
    """L = 1, u = v = 1: the same trajectory from the same factors."""
    found = []
    for name, hyper in (("tied_lora", {"scales": "fixed"}), ("lora", {})):
        model, x = lone("linear"), inputs("linear")
        injection = inject(model, name, target_modules="layer", rank=3, **hyper)
        tensors = dict(zip(("A_RI", "B_OR"), injection.parameters(), strict=True))
        source = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in tensors.values():
                p.copy_(torch.randn(p.shape, generator=source, dtype=p.dtype))
        train(injection, lambda model=model, x=x: model(x).square().mean(), steps=5)
        found.append((model(x), *tensors.values()))
    assert_close(*found)


def test_with_a_frozen_pair_tied_lora_is_vera_s_product():
    """A and B frozen: d = u, b = s v of VeRA, whose equation is written here."""
    _, injection, _ = stacked("tied_lora", rank=3, alpha=6.0)
    injection.shared.requires_grad_(False)
    adapter = injection.adapters["layers.0"]
    assert [name for name, p in adapter.named_parameters() if p.requires_grad] == ["u_R", "v_O"]
    d, b = torch.diag(adapter.u_R), torch.diag(2.0 * adapter.v_O)
    expected = b @ injection.shared["6x6"].B_OR @ d @ injection.shared["6x6"].A_RI
    assert_close(updates(injection)["layers.0"], expected.detach())


def test_a_smaller_rank_takes_the_first_rows_of_the_pair():
    model = Stack()
    injection = inject(model, "tied_lora", target_modules=["layers"], rank=3, rank_pattern={"layers.1": 2})
    perturb(injection)
    pair, own = injection.shared["6x6"], injection.adapters["layers.1"]
    assert pair.A_RI.shape == (3, 6) and own.u_R.shape == (2,)
    expected = torch.diag(own.v_O) @ pair.B_OR[:, :2] @ torch.diag(own.u_R) @ pair.A_RI[:2]
    assert_close(updates(injection)["layers.1"], expected.detach())
    assert injection.trainable() == 3 * (12 + 10) + 3 * 3 + 2 + 3 * 6 + 4


def test_tied_tensors_get_the_gradients_of_all_their_matrices():
    model, injection, x = stacked("tied_lora", rank=3)
    loss_of(model, x).backward()
    pair = injection.shared["6x6"]
    found, expected = pair.A_RI.grad.clone(), torch.zeros_like(pair.A_RI)
    for name in ("layers.0", "layers.1", "layers.2"):
        twin = copy.deepcopy(model)
        twin.zero_grad()
        own = twin.layers[int(name[-1])].entries["default"][0].adapter
        own.pair = copy.deepcopy(own.pair)  # this matrix alone reads the copy
        loss_of(twin, x).backward()
        expected += own.pair.A_RI.grad
    assert_close(found, expected)


@pytest.mark.parametrize("init", ["pissa", "symmetric", "both_random"])
def test_starts_that_look_at_one_matrix_or_change_the_model_are_refused(init):
    with pytest.raises(ValueError, match=f"tied_lora cannot start from init={init}"):
        inject(lone("linear"), "tied_lora", target_modules="layer", init=init)
