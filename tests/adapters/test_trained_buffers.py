"""Buffers go with the parameters that train in full: in activation, files, exchange and removal."""

import copy
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lora_zoo import adapters_of, inject, load_adapter, save_adapter, save_peft

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(36), nn.Linear(36, 2)

    def forward(self, x):
        return self.out(self.norm(x))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 4), nn.Flatten(), Head()
    ).eval()


CASES = {
    "a norm": {"modules_to_save": ["1"]},
    "a norm within": {"modules_to_save": ["4"]},
    "both": {"modules_to_save": ["1", "4"]},
}
OWN = {"a norm": ["1"], "a norm within": ["4.norm"], "both": ["1", "4.norm"]}


def trained(model, name="default", **case):
    injection = inject(model, "lora", target_modules=["0"], rank=2, name=name, **case)
    steps = torch.optim.SGD(injection.parameters(), lr=0.1)
    model.train()
    for _ in range(3):
        model(X * 3 + 1).square().mean().backward()
        steps.step()
        steps.zero_grad()
    model.eval()
    return injection


def frozen_statistics(model, own):
    """Statistics of norms that do not train are no adapter's; the base's own are kept for comparison."""
    return {n: b for n, b in model.named_buffers() if n.rpartition(".")[0] not in own}


@pytest.mark.parametrize("case", CASES)
def test_statistics_go_with_what_trains(case, tmp_path):
    model = net()
    injection = trained(model, **CASES[case])
    names = {f"{module}.{own}" for module in OWN[case] for own in STATISTICS}
    assert names <= injection.state_dict().keys()
    expected, drifted = model(X), frozen_statistics(model, OWN[case])
    base = net()
    base.load_state_dict(drifted, strict=False)
    with injection.disabled():
        assert_close(model(X), base(X))
    assert torch.equal(model(X), expected)
    save_adapter(injection, tmp_path / "ours")
    save_peft(injection, tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        load_adapter(other := copy.deepcopy(base), tmp_path / folder)
        assert_close(other.eval()(X), expected)
    assert_close(peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs").eval()(X), expected)
    injection.remove()
    assert torch.equal(model(X), base(X))


def test_counts_stay_counts_and_are_read_from_whole_floats(tmp_path):
    injection = trained(net(), **CASES["a norm"])
    key, state = "1.num_batches_tracked", injection.state_dict()
    save_peft(injection, tmp_path)
    (held,) = (t for n, t in load_file(tmp_path / "adapter_model.safetensors").items() if n.endswith(key))
    assert held.dtype == torch.int64 and held == 3
    other = inject(net(), "lora", target_modules=["0"], rank=2, **CASES["a norm"])
    other.load_state_dict(state | {key: state[key].float()})
    assert other.state_dict()[key] == 3
    for wrong in (torch.tensor(2.5), torch.tensor(float("nan"))):
        with pytest.raises(ValueError, match=r"is torch\.float32, not torch\.int64"):
            other.load_state_dict(state | {key: wrong})


def test_adapters_have_statistics_of_their_own_and_a_merge_keeps_them():
    model = net()
    one = trained(model, "one", **CASES["a norm"])
    first = model(X)
    adapters_of(model).activate()
    other = trained(model, "other", **CASES["a norm within"])
    model.double()
    second = model(X.double())
    one.activate()
    assert_close(model[1].running_mean, one.state_dict()["1.running_mean"])
    other.activate()
    assert_close(model(X.double()), second)
    other.merge()
    adapters_of(model).remove()
    assert_close(model(X.double()), second, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first.double(), second)


def test_statistics_follow_the_model_when_it_moves():
    model = net()
    injection = trained(model, **CASES["a norm"])
    model.double().train()(X.double())
    assert torch.equal(injection.state_dict()["1.running_mean"], model[1].running_mean)
    assert injection.state_dict()["1.running_mean"].dtype == torch.float64


def test_full_fine_tuning_restores_every_statistic():
    model = net()
    injection = inject(model, "full")
    model.train()(X)
    injection.remove()
    assert torch.equal(model.eval()(X), net()(X))


def test_statistics_of_a_frozen_module_that_moved_are_told(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    injection = inject(model, "lora", target_modules=["0"], rank=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(injection, tmp_path / "met")
    model(torch.randn(8, 4) + 3)
    for write in (save_adapter, save_peft):
        with pytest.warns(UserWarning, match=r"1.running_mean has changed .* modules_to_save=\[1\]"):
            write(injection, tmp_path / write.__name__)


def test_a_module_without_parameters_cannot_be_saved_as_trained():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    with pytest.raises(ValueError, match="modules_to_save: 1 holds no parameter"):
        inject(model, "lora", target_modules=["0"], rank=2, modules_to_save=["1"])
