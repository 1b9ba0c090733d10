"""Whatever fails while an adapter enters, the model is as it was."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
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


MERGE_STEPS = [
    (wrappers.AdapterWrapper, "effective"),
    (wrappers.AdapterWrapper, "effective_bias"),
    (wrappers.LayerWrapper, "uninstall"),
    (wrappers.LayerWrapper, "store"),
    (parametrized.ParametrizedWeight, "uninstall"),
    (parametrized.ParametrizedWeight, "store"),
    (tied_weights.Tying, "update"),
]


@pytest.mark.parametrize(("owner", "step"), MERGE_STEPS, ids=lambda given: getattr(given, "__name__", given))
def test_a_step_of_merging_that_raises_leaves_the_model_as_it_was(owner, step, monkeypatch):
    plain = getattr(owner, step)
    for call in range(3):
        model = Net()
        injection = inject(model, "lora", rank=2, **WHERE)
        perturb(injection)
        before, expected, left = state(model), model.eval()(X), [call]

        def failing(*given, left=left, **named):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return plain(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, failing)
            try:
                injection.merge()
            except KeyboardInterrupt:
                pass
            else:
                assert call
                continue
        assert not injection._adapter_set.merged
        assert torch.equal(model(X), expected)
        assert state(model)[2:] == before[2:]
        injection.merge()
        torch.testing.assert_close(model(X), expected)
        injection.unmerge()
        assert torch.equal(model(X), expected)


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


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "codes", "cut off"])
def test_a_file_of_no_numbers_changes_nothing(wrong, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    injection = inject(model, "lora", rank=2, target_modules=["0"])
    file = save_adapter(injection, tmp_path) / "adapter.safetensors"
    state = {name: tensor + 1 for name, tensor in load_file(file).items()}
    last = list(state)[-1]
    state[last] = state[last].to(torch.int8) if isinstance(wrong, str) else state[last].fill_(wrong)
    save_file(state, file)
    if wrong == "codes":
        met = {name: tensor.clone() for name, tensor in injection.state_dict().items()}
        with pytest.raises(ValueError, match=r"is torch.int8, not torch.float32"):
            injection.load_state_dict(state)
        assert all(torch.equal(t, met[name]) for name, t in injection.state_dict().items())
    if wrong == "cut off":
        file.write_bytes(file.read_bytes()[:-4])
    base = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"holds NaN or inf|is torch.int8|is no safetensors file"):
        load_adapter(base, tmp_path)
    assert type(base[0]) is nn.Linear and base[0].weight.requires_grad and not adapters_of(base)


@pytest.mark.parametrize("init", ["pissa", "milora"])
def test_singular_values_of_no_numbers_are_refused(init):
    model = nn.Sequential(nn.Linear(4, 4))
    torch.nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(ValueError, match="NaN or inf has no singular values"):
        inject(model, init, rank=2, target_modules=["0"])
    assert type(model[0]) is nn.Linear and model[0].weight.requires_grad
