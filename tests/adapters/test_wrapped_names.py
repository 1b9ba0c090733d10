"""Names are the base model's own, whatever wraps it, in memory and in files."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from lora_zoo import adapters_of, inject, load_adapter, save_adapter, save_peft
from lora_zoo.conformance.cases import perturb

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.module = nn.Linear(8, 8)  # a name that wrappers use as well
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for layer in self.body:
            x = layer(x).relu()
        return self.head(self.module(x))


def inner(wrap):
    """A model with two of its modules wrapped, one of them a layer that is adapted."""
    model = Net()
    model.body[0], model.head = wrap(model.body[0]), wrap(model.head)
    return model


def compiled(module):
    return torch.compile(module, backend="eager")


class Sharded(nn.Module):
    """A module as FSDP names what it wraps; FSDP itself needs a group of processes."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module

    def forward(self, x):
        return self._fsdp_wrapped_module(x)


class OwnParallel(nn.DataParallel):
    pass


WRAPS = {
    "plain": Net,
    "compiled": lambda: compiled(Net()),
    "averaged": lambda: AveragedModel(Net()),
    "parallel": lambda: nn.DataParallel(Net()),
    "parallel by a class of one's own": lambda: OwnParallel(Net()),
    "twice": lambda: nn.DataParallel(AveragedModel(Net())),
    "inner compiled": lambda: inner(compiled),
    "inner checkpointed": lambda: inner(checkpoint_wrapper),
    "inner sharded": lambda: Sharded(inner(Sharded)),
}
WHERE = {"target_modules": ["body.0", "module"], "modules_to_save": ["head"]}


def adapted(model):
    injection = inject(model, "lora", rank=2, **WHERE)
    perturb(injection)
    return injection


def names(module):
    return [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize("one", WRAPS)
@pytest.mark.parametrize("other", ["plain", "twice", "inner compiled"])
def test_an_adapter_goes_from_any_wrapping_to_any_other(one, other, tmp_path):
    torch._dynamo.reset()
    model, target = WRAPS[one](), WRAPS[other]()
    before, injection = names(model), adapted(model)
    assert list(injection.matrices) == ["body.0", "module"]
    assert injection.fully_trained == ["head.weight", "head.bias"]
    expected = model(X)
    assert not torch.allclose(expected, Net()(X))
    save_adapter(injection, tmp_path / "ours")
    save_peft(injection, tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        loaded = load_adapter(target, tmp_path / folder)
        torch.testing.assert_close(target(X), expected)
        loaded.remove()
    theirs = peft.PeftModel.from_pretrained(Net(), tmp_path / "theirs")
    torch.testing.assert_close(theirs(X), expected)
    injection.remove()
    assert names(model) == before and torch.equal(model(X), Net()(X))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod._orig_mod"]
)
def test_files_whose_names_have_a_wrappers_prefix_load(prefix, tmp_path):
    injection = adapted(model := Net())
    expected = model(X)
    save_adapter(injection, tmp_path)
    state, path = load_file(tmp_path / "adapter.safetensors"), tmp_path / "adapter.json"
    save_file({f"{prefix}.{name}": t for name, t in state.items()}, tmp_path / "adapter.safetensors")
    text = json.loads(path.read_text())
    text |= {key: [f"{prefix}.{name}" for name in text[key]] for key in ("target_modules", "in_full")}
    path.write_text(json.dumps(text))
    load_adapter(other := Net(), tmp_path)
    torch.testing.assert_close(other(X), expected)


def test_a_wrapper_and_what_it_wraps_have_the_same_adapters():
    model = Net()
    injection = adapted(model)
    for wrapper in (compiled(model), nn.DataParallel(model)):
        assert list(adapters_of(wrapper).values()) == [injection]
        with pytest.raises(ValueError, match="adapted already"):
            inject(wrapper, "lora", rank=2, **WHERE)


def test_targets_and_saved_modules_may_be_named_as_the_wrapper_names_them():
    model = torch.compile(nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}), backend="eager")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert names == ["_orig_mod.a", "_orig_mod.b"]
    injection = inject(model, "lora", rank=2, target_modules=names[:1], modules_to_save=names[1:])
    assert list(injection.matrices) == ["a"]
    assert injection.fully_trained == ["b.weight", "b.bias"]


def test_a_model_that_peft_adapted_is_refused_for_what_it_is():
    model = nn.Sequential(nn.Linear(4, 4))
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    for whole in (theirs, theirs.base_model.model):
        with pytest.raises(ValueError, match="of PEFT's: take its adapter out first"):
            inject(whole, "lora", rank=2, target_modules=["0"])
    inject(theirs.unload(), "lora", rank=2, target_modules=["0"])
