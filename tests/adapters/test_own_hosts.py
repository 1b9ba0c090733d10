"""Layer types of a user's own file: found, adapted, merged as their `write` says, or refused."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import perturb
from lora_zoo.core.registry import Registry
from lora_zoo.core.user_files import run_file
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.hosts.find import HOSTS
from lora_zoo.injection.inject import inject

FILE = '''
from torch import nn
from torch.nn import functional as F

from lora_zoo.core.host import LayerHost
from lora_zoo.hosts.find import HOSTS


class Scaled(nn.Module):
    """A layer that stores W / gain."""

    def __init__(self, O, I, gain):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(O, I)), gain

    def forward(self, x):
        return F.linear(x, self.gain * self.weight)


class Frozen(Scaled):
    """The same, as if it held codes."""


@HOSTS.register("scaled linear")
class ScaledHost(LayerHost):
    dense = linear = True

    @classmethod
    def accepts(cls, layer):
        return type(layer) is Scaled

    def view(self, stored):
        return self.layer.gain * stored

    def write(self, stored, W_OI):
        stored[self.part] = (W_OI / self.layer.gain).to(stored.dtype)

    def times(self, x, W_OI):
        return F.linear(x, W_OI)


@HOSTS.register("frozen linear")
class FrozenHost(ScaledHost):
    unmergeable = "it stores codes"

    @classmethod
    def accepts(cls, layer):
        return type(layer) is Frozen
'''


@pytest.fixture
def own(tmp_path: Path) -> Any:
    path = tmp_path / "layers.py"
    path.write_text("import torch\n" + FILE)
    run_file(path)
    yield vars(sys.modules[HOSTS["scaled linear"].__module__])
    for name in ("scaled linear", "frozen linear"):
        del HOSTS._members[name], HOSTS._origins[name]


def net(layer: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(layer(6, 4, 8.0))


@pytest.mark.parametrize("name", ["lora", "dora", "bottleneck"])
def test_a_layer_type_of_a_file_is_adapted_merged_and_saved_as_its_file_says(
    name: str, own: Any, tmp_path: Path
) -> None:
    model, x = net(own["Scaled"]), torch.randn(3, 4)
    before, stored = model(x), model[0].weight.detach().clone()
    injection = inject(model, name, target_modules="0", rank=2)
    assert injection.matrices["0"].host.kind == "scaled linear"
    assert_close(model(x), before)
    perturb(injection)
    output = model(x).detach()
    save_adapter(injection, tmp_path / "saved")
    again = net(own["Scaled"])
    load_adapter(again, tmp_path / "saved")
    assert torch.equal(again(x), output)
    if injection.variant.pointwise:
        injection.merge()
        assert_close(model(x), output)
        assert type(model[0]) is own["Scaled"] and not torch.equal(model[0].weight, stored)
        injection.unmerge()
    injection.remove()
    assert torch.equal(model[0].weight, stored) and torch.equal(model(x), before)


def test_a_bias_is_refused_where_the_layer_would_not_add_it(own: Any) -> None:
    with pytest.raises(ValueError, match=r"bitfit cannot adapt 0, a scaled linear .*cannot have a bias"):
        inject(net(own["Scaled"]), "bitfit", target_modules="0")


def test_a_merge_into_codes_is_refused_and_changes_nothing(own: Any) -> None:
    model, x = net(own["Frozen"]), torch.randn(3, 4)
    injection = inject(model, "lora", target_modules="0", rank=2)
    perturb(injection)
    output = model(x)
    with pytest.raises(ValueError, match="0 cannot be merged, a frozen linear: it stores codes"):
        injection.merge()
    assert torch.equal(model(x), output)
    with injection.disabled():
        assert_close(model(x), net(own["Frozen"])(x))


def test_a_layer_type_of_another_package_is_found_by_its_entry_point(
    own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = HOSTS["scaled linear"].__module__
    point = importlib.metadata.EntryPoint("theirs", f"{module}:ScaledHost", "lora_zoo.layer_type")
    monkeypatch.setattr(
        "lora_zoo.core.registry.entry_points", lambda group: [point] if group == point.group else []
    )
    theirs: Registry[Any] = Registry("layer type", "lora_zoo.hosts", attribute="kind")
    monkeypatch.setattr(own["ScaledHost"], "kind", "scaled linear")
    assert theirs["theirs"] is own["ScaledHost"] and "linear" in theirs
