"""Bottleneck adapters against plain torch: the same network built of nn.Linear, trained in the model."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import batch, fresh, inputs, logits, lone, only, perturb
from lora_zoo.injection.inject import inject
from lora_zoo.injection.plan import plan_injection

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Plain(nn.Module):
    """A layer with the network behind or beside it, as a user of torch would write it."""

    def __init__(self, layer, adapter, series, activation, scale):
        super().__init__()
        down = nn.Linear(*adapter.D_RH.T.shape, dtype=torch.float64)
        up = nn.Linear(*adapter.U_OR.T.shape, dtype=torch.float64)
        with torch.no_grad():
            down.weight.copy_(adapter.D_RH), down.bias.copy_(adapter.a_R)
            up.weight.copy_(adapter.U_OR), up.bias.copy_(adapter.c_O)
        self.layer, self.network = layer, nn.Sequential(down, ACTIVATIONS[activation](), up)
        self.series, self.scale = series, scale

    def forward(self, x):
        y = self.layer(x)
        return y + self.scale * self.network(y if self.series else x)


def losses(model, parameters, steps=6):
    optimizer, found = torch.optim.AdamW(parameters, lr=0.01), []
    for _ in range(steps):
        loss = model(**batch("bert")).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("mode", "activation", "scale"),
    [("series", "relu", 1.0), ("series", "gelu", 0.5), ("parallel", "tanh", 4.0)],
)
def test_a_bert_with_adapters_trains_as_one_with_plain_networks(mode, activation, scale):
    ours, plain = (fresh("bert")[0].double() for _ in range(2))
    chosen = {"mode": mode, "activation": activation, "scale": scale, "std": 0.2}
    injection = inject(ours, "bottleneck", rank=5, **chosen)
    assert {name.rpartition("layer.")[2][2:] for name in injection.adapters} == {
        "attention.output.dense",
        "output.dense",
    }
    networks = []
    plain.requires_grad_(False)
    for name, adapter in injection.adapters.items():
        parent, _, child = name.rpartition(".")
        layer = Plain(plain.get_submodule(name), adapter, mode == "series", activation, scale)
        setattr(plain.get_submodule(parent), child, layer)
        networks.append(layer.network)
    own = [p for network in networks for p in network.parameters()]
    assert injection.trainable() == sum(p.numel() for p in own)
    assert_close(logits(ours, "bert"), logits(plain, "bert"), rtol=1e-10, atol=1e-12)
    assert_close(losses(ours, injection.parameters()), losses(plain, own), rtol=1e-9, atol=0)
    for network, adapter in zip(networks, injection.adapters.values(), strict=True):
        assert_close(network[0].weight, adapter.D_RH, rtol=1e-7, atol=1e-9)
        assert_close(network[2].bias, adapter.c_O, rtol=1e-7, atol=1e-9)


def test_the_start_is_the_model_itself_or_with_std_near_it():
    before = logits(fresh("bert")[0], "bert")
    for std, moved in ((0.0, 0.0), (0.01, 1e-2)):
        model = fresh("bert")[0]
        injection = inject(model, "bottleneck", rank=6, std=std)
        adapter = next(iter(injection.adapters.values()))
        assert_close(logits(model, "bert"), before, rtol=0, atol=moved)
        assert torch.equal(logits(model, "bert"), before) == (not std)
        assert (
            abs(float(adapter.D_RH.detach().std()) - (std or 3**-0.5 / 4)) < (std or 1) / 5
        )  # U(-1/4, 1/4): 16 wide
        assert float(adapter.U_OR.detach().std()) == pytest.approx(std, rel=0.2)


@pytest.mark.parametrize(("hyper", "width"), [({}, 10), ({"mode": "parallel"}, 14)])
def test_the_network_reads_the_outputs_in_series_and_the_inputs_beside(hyper, width):
    injection = inject(lone("linear"), "bottleneck", target_modules="layer", rank=3, **hyper)
    assert only(injection)[0].D_RH.shape == (3, width)
    assert injection.trainable() == 3 * width + 3 + 3 * 10 + 10


def test_its_places_are_those_that_the_class_names_unless_others_are_asked_for():
    model = fresh("llama")[0]
    roles = {matrix.role for matrix in plan_injection(model, "bottleneck").matrices}
    assert roles == {"o", "down"}
    assert {m.role for m in plan_injection(model, "bottleneck", target_modules="q").matrices} == {"q"}
    assert {m.role for m in plan_injection(model, "lora").matrices} == {"q", "v"}


@pytest.mark.parametrize("wrong", [{"std": -0.1}, {"scale": 0.0}])
def test_a_start_or_a_scale_that_means_nothing_is_refused(wrong):
    with pytest.raises(
        ValueError, match=r"bottleneck: (std must not be negative|scale must be a number other than 0); got"
    ):
        inject(lone("linear"), "bottleneck", target_modules="layer", **wrong)


def test_it_is_refused_on_convolutions():
    with pytest.raises(ValueError, match=r"bottleneck cannot adapt layer, a convolution .*reads vectors"):
        inject(lone("convolution_2d"), "bottleneck", target_modules="layer")


def test_an_embedding_s_rows_go_through_it_as_vectors():
    model, ids = lone("embedding"), inputs("embedding")
    injection = inject(model, "bottleneck", target_modules="layer", rank=3, std=0.5, activation="relu")
    adapter = only(injection)[0]
    y = lone("embedding")(ids)
    hidden = torch.relu(y @ adapter.D_RH.T + adapter.a_R)
    assert_close(model(ids), y + hidden @ adapter.U_OR.T + adapter.c_O)


@pytest.mark.parametrize("mode", ["series", "parallel"])
def test_loretta_s_adapter_is_a_bottleneck_whose_matrices_are_trains(mode):
    """D's cores: H, then the bottleneck 6 = 2 · 3; U's: that, then 10 = 2 · 5. So are gradients."""
    more = {"target_modules": "layer", "rank": 6, "activation": "tanh", "scale": 0.5, "mode": mode}
    injections = [inject(lone("linear"), name, **more) for name in ("loretta_adp", "bottleneck")]
    (ours, _), (dense, _) = map(only, injections)
    perturb(injections[0])
    D_RH = torch.einsum("aib,bjc,ckd,dle->klij", *ours.D).flatten(2).flatten(0, 1)
    U_OR = torch.einsum("aib,bjc,ckd,dle->klij", *ours.U).flatten(2).flatten(0, 1)
    assert D_RH.shape == (6, 10 if mode == "series" else 14)
    with torch.no_grad():
        for name, values in (("D_RH", D_RH), ("U_OR", U_OR), ("a_R", ours.a_R), ("c_O", ours.c_O)):
            dense.get_parameter(name).copy_(values)
    for injection in injections:
        injection.model(inputs("linear")).square().sum().backward()
    assert_close(*(injection.model(inputs("linear")) for injection in injections))
    through = torch.autograd.grad(
        (D_RH * dense.D_RH.grad).sum() + (U_OR * dense.U_OR.grad).sum(), [*ours.D, *ours.U]
    )
    for core, gradient in zip([*ours.D, *ours.U], through, strict=True):
        assert_close(core.grad, gradient)
    assert_close(ours.c_O.grad, dense.c_O.grad)


def test_the_trains_of_the_adapter_have_the_published_count_and_width():
    """768 = 8 · 8 · 12 and 64 = 8 · 8: 40 + 200 + 300 + 200 + 40 numbers in D, 40 + 3 · 200 + 60 in U."""
    injection = inject(lone("linear", 768, 768), "loretta_adp", target_modules="layer")
    adapter, _ = only(injection)
    assert [core.shape[1] for core in adapter.D] == [8, 8, 12, 8, 8]
    assert injection.trainable() == 780 + 700 + 64 + 768
    assert float(adapter.down().detach().std()) == pytest.approx((768 + 64) ** -0.5, rel=0.35)
    assert not adapter.up().any()
    with pytest.raises(ValueError, match="tensor_rank must be at least 1; got 0"):
        inject(lone("linear"), "loretta_adp", target_modules="layer", tensor_rank=0)
