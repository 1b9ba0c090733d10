"""A thousand switches among many adapters leave nothing behind: every drift is exactly 0."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo import BASE
from lora_zoo.conformance.cases import perturb
from lora_zoo.injection.adapter_set import AdapterSet, adapters_of
from lora_zoo.injection.inject import inject

EVERYWHERE = ["first", "attention.in_proj_weight.k", "last"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": EVERYWHERE, "rank": 2},
    "dora": {"target_modules": EVERYWHERE, "rank": 2},
    "ia3": {"target_modules": ["first", "last"]},
    "bitfit": {"target_modules": ["first"]},
    "oft": {"target_modules": EVERYWHERE, "block_size": 2},
    "hydralora": {"target_modules": ["first"], "rank": 2},
    "rslora": {"target_modules": ["first"], "rank": 2, "modules_to_save": ["norm"]},
}


class Net(nn.Module):
    """A layer that is called, one that reads its weight, and one that can train in full."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        return self.last(h + self.attention(h, h, h, need_weights=False)[0])


def added(net: Net, name: str) -> None:
    perturb(inject(net, name, name=name, **ADAPTERS[name]), 0.3, seed=len(name))


def activate(adapters: AdapterSet[Any], names: list[str]) -> None:
    adapters.activate(*names)


def weigh(adapters: AdapterSet[Any], names: list[str]) -> None:
    small = [name for name in names if name != "rslora"]  # what trains in full takes no weight
    adapters.activate(*small, weights=[-0.5] * len(small))


def merge(adapters: AdapterSet[Any], names: list[str]) -> None:
    if "hydralora" not in adapters.active:
        adapters.merge()


def unmerge(adapters: AdapterSet[Any], names: list[str]) -> None:
    adapters.unmerge()


def enable(adapters: AdapterSet[Any], names: list[str]) -> None:
    for number, name in enumerate(names):
        adapters[name].enable(number != 1)


def isolate(adapters: AdapterSet[Any], names: list[str]) -> None:
    if not adapters.merged:
        for name in names:
            adapters.isolate(name)
        adapters.show_all()


def look_away(adapters: AdapterSet[Any], names: list[str]) -> None:
    with adapters.disabled():
        adapters.model(X)


def rows(adapters: AdapterSet[Any], names: list[str]) -> None:
    of_rows = {name for name in names if "attention" not in str(ADAPTERS[name])} | {BASE}
    with adapters.rows([*of_rows, BASE, BASE][: len(X)]):
        adapters.model(X[: len(of_rows) + 2])


def add(adapters: AdapterSet[Any], names: list[str]) -> None:
    for name in [name for name in ADAPTERS if name not in adapters][:1]:
        added(adapters.model, name)


def delete(adapters: AdapterSet[Any], names: list[str]) -> None:
    if not adapters.merged:
        for name in names[:2]:
            adapters.delete(name)


SWITCHES = (activate, weigh, merge, unmerge, enable, isolate, look_away, rows, add, delete)


X = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_thousand_switches_leave_every_output_and_the_base_as_they_were() -> None:
    net, draw = Net().eval().requires_grad_(False), random.Random(0)  # torch's attention asks for it
    plain, own = net(X), dict(net.named_parameters())
    before = {name: p.detach().clone() for name, p in own.items()}
    known: dict[tuple[Any, ...], Tensor] = {}
    for name in [*ADAPTERS][:4]:
        added(net, name)
    seen = 0
    for number in range(1000):
        adapters = adapters_of(net)
        names = draw.sample([*adapters], draw.randint(0, min(3, len(adapters))))
        draw.choice(SWITCHES)(adapters, names)
        if number % 2:
            continue
        adapters = adapters_of(net)
        weights = getattr(adapters.composition, "weights", {})
        state = (adapters.active, *(weights.get(name, 1.0) for name in adapters.active), adapters.merged)
        found = net(X)
        seen += state in known
        assert torch.equal(known.setdefault(state, found), found), state
    assert seen > 250 and any(state[-1] and state[0] for state in known), "states return, merged ones too"
    adapters_of(net).unmerge()
    adapters_of(net).remove()
    assert torch.equal(net(X), plain) and type(net.attention) is nn.MultiheadAttention
    after = dict(net.named_parameters())
    assert after.keys() == own.keys() and all(after[n] is p and not p.requires_grad for n, p in own.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
