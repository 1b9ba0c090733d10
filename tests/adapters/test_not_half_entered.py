"""Whatever fails while an adapter enters, the model is as it was."""

import copy

import pytest
import torch
from torch import nn

from lora_zoo import adapters_of, inject, load_adapter, save_adapter
from lora_zoo.conformance.cases import perturb
from lora_zoo.injection import adapter_set, parametrized, tied_weights, wrappers
from lora_zoo.injection import inject as inject_module
from lora_zoo.injection.trained_buffers import TrainedBuffers

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        x = self.attention(x[None], x[None], x[None])[0][0]
        return self.head(self.norm(x))


WHERE = {"target_modules": ["layers", "in_proj_weight"], "modules_to_save": ["norm", "head"]}


def state(model):
    """All that a caller can see of a model: names, types, objects, values, flags, hooks, adapters."""
    modules = {n: (type(m).__name__, id(m), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    tensors = {n: (id(t), t.detach().clone().tolist()) for n, t in model.state_dict(keep_vars=True).items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    group = adapters_of(model)
    return modules, list(tensors.items()), flags, list(group), group.active, group.merged


STEPS = [
    (adapter_set, "make_wrapper"),
    (wrappers.LayerWrapper, "install"),
    (parametrized.ParametrizedWeight, "install"),
    (wrappers.AdapterWrapper, "add"),
    (adapter_set, "check_compatible"),
    (TrainedBuffers, "show"),
    (adapter_set, "put"),
    (tied_weights.Tying, "update"),
    (inject_module, "untie"),
    (inject_module, "build"),
    (inject_module.Injection, "_new_hooks"),
    (inject_module.Injection, "load_state_dict"),
]


def prepared(beside):
    """A model, and where it is said one with an adapter, at half its weight or merged."""
    model = Net()
    if beside != "alone":
        perturb(inject(model, "lora", rank=2, target_modules=["layers"], name="old"))
        adapters_of(model).activate("old", weights=[0.5])
    if "merged" in beside:
        adapters_of(model)["old"].merge()
    return model


@pytest.mark.parametrize("beside", ["alone", "beside another", "beside a merged one"])
@pytest.mark.parametrize(("owner", "step"), STEPS, ids=lambda given: getattr(given, "__name__", given))
def test_a_step_that_raises_leaves_the_model_as_it_was(owner, step, beside, monkeypatch, tmp_path):
    saved = inject(Net(), "lora", rank=2, name="new", **WHERE)
    save_adapter(saved, tmp_path)
    for call in range(3):
        model = prepared(beside)
        before, expected, counted = state(model), model.eval()(X), [0]
        plain = getattr(owner, step)

        def failing(*given, plain=plain, counted=counted, call=call, model=model, **named):
            building = owner in (inject_module, inject_module.Injection)
            counted[0] += building or "new" in adapters_of(model)
            if counted[0] == call + 1:
                counted[0] = 99
                raise KeyboardInterrupt
            return plain(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, failing)
            try:
                load_adapter(model, tmp_path)
            except KeyboardInterrupt:
                pass
            else:
                continue
        assert state(model)[2:] == before[2:]
        after = {n: (kind, hooks) for n, (kind, _, hooks) in state(model)[0].items()}
        assert after == {n: (kind, hooks) for n, (kind, _, hooks) in before[0].items()}
        assert torch.equal(model(X), expected)
        load_adapter(model, tmp_path)


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    from safetensors.torch import load_file, save_file

    save_adapter(inject(Net(), "lora", rank=2, name="new", **WHERE), tmp_path)
    path = tmp_path / "adapter.safetensors"
    whole = load_file(path)
    model = Net()
    perturb(inject(model, "lora", rank=2, target_modules=["layers"], name="old"))
    before = state(model)
    for broken in ({**whole, "head.bias": torch.zeros(3)}, dict(list(whole.items())[1:])):
        save_file(broken, path)
        with pytest.raises(ValueError, match="adapter state"):
            load_adapter(model, tmp_path)
        assert state(model) == before


@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyConv1d(3, 1)])
def test_lazy_modules_are_refused_until_they_have_a_shape(lazy):
    model = nn.ModuleDict({"layer": nn.Linear(8, 8), "lazy": copy.deepcopy(lazy)})
    with pytest.raises(ValueError, match=r"lazy\.weight has no shape yet"):
        inject(model, "lora", rank=2, target_modules=["layer"])
    assert model["layer"].weight.requires_grad and not model._forward_pre_hooks


def test_offloaded_bases_are_refused_and_whole_meta_models_are_not():
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.cpu_offload(Net(), execution_device=torch.device("cpu"))
    partly = Net()
    partly.layers[1].to("meta")
    for model in (offloaded, partly):
        with pytest.raises(ValueError, match=r"not in memory \(offloaded"):
            inject(model, "lora", rank=2, target_modules=["layers"])
    inject(Net().to("meta"), "lora", rank=2, target_modules=["layers"])
