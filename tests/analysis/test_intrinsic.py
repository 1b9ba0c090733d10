"""Random subspaces against closed forms."""

import pytest
import torch
from torch import nn

from lora_zoo.analysis.intrinsic_dimension import RandomSubspace, d90


def linear(inputs: int = 8, outputs: int = 5) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def test_it_begins_as_the_model_and_trains_theta_alone() -> None:
    model, x = linear(), torch.randn(3, 8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    subspace = RandomSubspace(model, ["weight"], dimension=4)
    assert torch.equal(subspace(x), model(x))
    assert [p.shape for p in subspace.parameters()] == [(4,)]
    optimiser = torch.optim.SGD(subspace.parameters(), lr=0.1)
    subspace(x).square().mean().backward()
    optimiser.step()
    assert not torch.equal(subspace(x), model(x))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name


@pytest.mark.parametrize("dimension", [4, 16, 32])
def test_what_a_random_subspace_cannot_reach_is_a_matter_of_dimensions(dimension: int) -> None:
    """The distance left to a target in R^D is √(1 - d/D) of the first one, expected over random subspaces."""
    left = []
    for seed in range(40):
        model = linear(8, 5)
        subspace = RandomSubspace(model, ["weight"], dimension, seed=seed)
        target = torch.randn(40, 1)
        columns = torch.stack([subspace.get_buffer("P0")[:, k] for k in range(dimension)], dim=1)
        nearest = torch.linalg.lstsq(columns, target).solution
        with torch.no_grad():
            subspace.theta.copy_(nearest.flatten())
        moved = (subspace.moved_parameters()["weight"] - model.weight).detach().flatten()
        left.append(float((moved - target.flatten()).square().sum() / target.square().sum()))
    assert sum(left) / len(left) == pytest.approx(1 - dimension / 40, abs=0.06)


def test_the_whole_space_is_reached_by_training() -> None:
    teacher, model, x = linear(4, 2), linear(4, 2), torch.randn(64, 4)
    subspace = RandomSubspace(model, ["weight", "bias"], dimension=10)
    optimiser = torch.optim.LBFGS(subspace.parameters(), max_iter=200)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (subspace(x) - teacher(x).detach()).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(closure()) < 1e-8


def test_directions_depend_on_the_seed_alone_and_are_of_unit_size() -> None:
    one, other, third = (RandomSubspace(linear(), ["weight"], 30, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.get_buffer("P0"), other.get_buffer("P0"))
    assert not torch.equal(one.get_buffer("P0"), third.get_buffer("P0"))
    assert float(one.get_buffer("P0").norm(dim=1).mean()) == pytest.approx(1, abs=0.1)
    assert list(one.state_dict()) == ["theta"], "a seed restores P"


def test_d90_is_where_nine_tenths_are_reached_for_good() -> None:
    assert d90({10: 0.3, 100: 0.86, 1000: 0.9}, full=0.95) == 100
    assert d90({10: 0.9, 100: 0.5, 1000: 0.9}, full=0.95) == 1000, "a lucky run at 10 is none"
    assert d90({10: 0.1}, full=0.95) is None and d90({}, full=1.0) is None
    assert d90({7: 0.5}, full=1.0, part=0.5) == 7


def test_mistakes_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="no parameter 'wieght'"):
        RandomSubspace(linear(), ["wieght"], 2)
    for dimension in (0, 41):
        with pytest.raises(ValueError, match=r"must be in 1\.\.40"):
            RandomSubspace(linear(), ["weight"], dimension)
    with torch.device("meta"):
        large = nn.Linear(4096, 4096, bias=False)
    with pytest.raises(ValueError, match=r"16,777,216 x 100 numbers"):
        RandomSubspace(large, ["weight"], 100)
    with pytest.raises(ValueError, match="positive"):
        d90({1: 1.0}, full=0.0)
