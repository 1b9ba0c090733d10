"""Variants with shared, routed or freezing tensors against PEFT, or where it lacks them their papers.

Shapes: O out, I in, R rank; layers in double precision unless PEFT is asked.
"""

import copy
import functools
import math

import peft
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import inputs, lone, only, perturb, train
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import inject
from tests.adapters.test_parity import TOLERANCE, Twins, measure


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


# --- VB-LoRA ------------------------------------------------------------------------------------------------


class BankTwins(Twins):
    def pairs(self, frozen=False):
        names = {"A_RTH": "vblora_logits_A", "B_TRH": "vblora_logits_B"}
        own = [
            (getattr(adapter, mine), getattr(self.layers[layer], theirs)["default"])
            for layer, adapter in self.injection.adapters.items()
            for mine, theirs in names.items()
        ]
        bank = self.theirs.base_model.vblora_vector_bank["default"]
        return [*own, (self.injection.shared.bank_HL, bank)]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_vb_lora_s_outputs_gradients_and_ten_steps_agree_with_peft(kind):
    peft_s = {"num_vectors": 9, "vector_length": 2, "topk": 3}
    config = functools.partial(peft.VBLoRAConfig, r=4, fan_in_fan_out=kind == "conv1d", **peft_s)
    twins = BankTwins("vb_lora", config, kind, rank=4, logits_lr_ratio=1.0, **peft_s)
    distance = measure(twins)
    assert max(distance.outputs, distance.gradients, distance.ten_steps) < TOLERANCE
    for name, layer in twins.layers.items():
        theirs = layer.get_delta_weight("default")
        ours = updates(twins.injection)[name]
        assert_close(ours, theirs.T if kind == "conv1d" else theirs, rtol=1e-4, atol=1e-5)


def test_vb_lora_s_starts_have_the_widths_of_peft_s():
    base = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64))
    config = peft.VBLoRAConfig(r=4, num_vectors=200, vector_length=64, target_modules=["0", "1"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config).base_model
    ours = inject(base, "vb_lora", target_modules=["0", "1"], num_vectors=200)
    bank, other = ours.shared.bank_HL.detach(), theirs.vblora_vector_bank["default"].detach()
    assert bank.shape == other.shape == (200, 64), "auto is the greatest length that divides 64 and 128"
    assert float(bank.abs().max()) <= 0.02
    assert float(bank.std()) == pytest.approx(float(other.std()), rel=0.05)
    for name in "01":
        mine, logits = ours.adapters[name], theirs.model.get_submodule(name)
        for a, b in ((mine.A_RTH, logits.vblora_logits_A), (mine.B_TRH, logits.vblora_logits_B)):
            assert a.shape == b["default"].shape
            assert float(a.detach().std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("topk", [1, 2, 5])
def test_a_sub_vector_is_the_mixture_of_the_bank_s_best(topk):
    """§3.2 entry by entry; with as many vectors as the bank has, a softmax over all of them."""
    _, injection, _ = stacked("vb_lora", rank=2, num_vectors=5, topk=topk, vector_length=2)
    state, dW_OI = injection.state_dict(), updates(injection)["layers.3"]
    bank = state["shared.bank_HL"]

    def vector(logits):
        chosen = sorted(range(5), key=lambda h: -float(logits[h]))[:topk]
        total = sum(math.exp(logits[h]) for h in chosen)
        return sum(math.exp(logits[h]) / total * bank[h] for h in chosen)

    A, B = state["layers.3.A_RTH"], state["layers.3.B_TRH"]
    A_RI = torch.stack([torch.cat([vector(t) for t in row]) for row in A])
    B_OR = torch.stack([torch.cat([vector(B[t, r]) for t in range(2)]) for r in range(2)], dim=1)
    assert_close(dW_OI, B_OR @ A_RI)


def test_one_vector_makes_all_sub_vectors_equal_and_no_logit_matter():
    _, injection, _ = stacked("vb_lora", rank=2, num_vectors=1, topk=1, vector_length=2)
    bank = injection.shared.bank_HL.detach()[0]
    for dW_OI in updates(injection).values():
        assert_close(dW_OI, 2 * torch.outer(bank.repeat(len(dW_OI) // 2), bank.repeat(3)))


def test_the_bank_learns_at_lr_and_the_logits_ten_times_as_fast():
    _, injection, _ = stacked("vb_lora", rank=2)
    bank, logits = injection.param_groups(lr=1e-3, weight_decay=0.1)
    assert (bank["lr"], logits["lr"]) == (1e-3, pytest.approx(1e-2))
    assert [id(p) for p in bank["params"]] == [id(injection.shared.bank_HL)]
    assert len(logits["params"]) == 2 * 4


def test_the_bank_counts_once_and_the_logits_for_each_matrix():
    """Method sheet, 8.1: h r (k + d) / b a matrix, and h b for all."""
    _, injection, _ = stacked("vb_lora", rank=3, num_vectors=7)
    assert injection.trainable() == 7 * 2 + 7 * 3 * (3 * 12 + 10) // 2


@pytest.mark.parametrize(
    "hyper, said",
    [
        ({"vector_length": 4}, r"layers.0, a linear \(6 x 6\): vector_length=4 must divide both sides"),
        ({"vector_length": 0}, "vector_length=0 must divide both sides"),
        ({"topk": 9, "num_vectors": 8}, "topk must lie between 1 and num_vectors=8; got 9"),
        ({"topk": 0}, "topk must lie between 1 and"),
        ({"logits_lr_ratio": 0.0}, "logits_lr_ratio must be above 0"),
    ],
)
def test_what_no_bank_can_be_is_refused(hyper, said):
    model = Stack()
    with pytest.raises(ValueError, match=said):
        inject(model, "vb_lora", target_modules=["layers"], **hyper)
    assert all(type(layer) is nn.Linear for layer in model.layers)


# --- HydraLoRA ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding", "fused"])
def test_hydralora_is_each_token_s_own_mean_of_heads(kind):
    """Eq. 5, a token at a time: the softmax of G x weighs B_i A x, times α/r."""
    model, x = lone(kind), inputs(kind)
    injection = inject(model, "hydralora", target_modules=[model.target], rank=3, alpha=6.0, heads=2)
    perturb(injection)
    adapter, host = only(injection)
    base, found = host.base(x).flatten(0, -2), host.rows_of(model(x)).flatten(0, -2)
    tokens = torch.eye(14).double()[x] if kind == "embedding" else x
    for token, y_O, plain_O in zip(tokens.flatten(0, -2), found, base, strict=True):
        e = [math.exp(g @ token) for g in adapter.G_NI.detach()]
        expected = plain_O + sum(
            6.0 / 3 * e[i] / sum(e) * (adapter.B_NOR[i] @ (adapter.A_RI @ token)) for i in range(2)
        )
        assert_close(y_O, expected)


def test_with_one_head_hydralora_trains_as_lora():
    """Whatever its router: the same trajectory from the same factors at the same scale."""
    found = []
    for name, hyper in (("hydralora", {"heads": 1}), ("lora", {})):
        model, x = lone("linear"), inputs("linear")
        injection = inject(model, name, target_modules="layer", rank=3, alpha=5.0, **hyper)
        adapter, _ = only(injection)
        source, B = torch.Generator().manual_seed(2), adapter.B_NOR if hyper else adapter.B_OR
        with torch.no_grad():
            for p in (adapter.A_RI, B):
                p.copy_(torch.randn(*p.shape[-2:], generator=source, dtype=p.dtype))
        train(injection, lambda model=model, x=x: model(x).square().mean(), steps=5)
        found.append((model(x), adapter.A_RI, B.view(10, 3)))
    assert_close(*found)


def test_with_equal_heads_the_router_learns_nothing_and_is_not_seen():
    model, x = lone("linear"), inputs("linear")
    adapter, host = only(inject(model, "hydralora", target_modules="layer", rank=3, heads=3))
    with torch.no_grad():
        adapter.B_NOR.copy_(torch.randn(10, 3).double())
    expected = host.base(x) + 32.0 / 3 * (x @ adapter.A_RI.T @ adapter.B_NOR[0].T)
    assert_close(model(x), expected)
    model(x).square().sum().backward()
    assert_close(adapter.G_NI.grad, torch.zeros_like(adapter.G_NI))


def test_one_mask_serves_all_heads_and_the_router_sees_the_whole_input():
    model = lone("linear").train()
    adapter, host = only(
        inject(model, "hydralora", target_modules="layer", rank=3, heads=2, lora_dropout=0.5)
    )
    with torch.no_grad():
        adapter.B_NOR.normal_(generator=torch.Generator().manual_seed(1))
    x = inputs("linear")
    y = model(x)
    adapter.counter.counts = dict.fromkeys(adapter.counter.counts, 0)
    dropped = adapter.dropout.mask(x).drop(x)
    weights = torch.softmax(x @ adapter.G_NI.T, -1)
    heads = torch.stack([dropped @ adapter.A_RI.T @ B.T for B in adapter.B_NOR], -1)
    assert_close(y, host.base(x) + 32.0 / 3 * (heads * weights[..., None, :]).sum(-1))


def test_hydralora_counts_a_router_one_a_and_every_head():
    """Method sheet, 8.1: r k + N r d + N k; 33,792 for k = d = 768, r = 8, N = 4."""
    injection = inject(lone("linear", 768, 768), "hydralora", target_modules="layer", rank=8)
    assert injection.trainable() == 33_792


@pytest.mark.parametrize(
    "kind, said",
    [
        ("convolution_2d", "hydralora cannot adapt layer, a convolution .*no"),
        ("attention", "hydralora has no effective weight.*put on layer.in_proj_weight.k"),
    ],
)
def test_a_router_is_refused_where_there_are_no_tokens(kind, said):
    model = lone(kind)
    with pytest.raises(ValueError, match=said):
        inject(model, "hydralora", target_modules=[model.target])
    with pytest.raises(ValueError, match="heads must be at least 1; got 0"):
        inject(lone("linear"), "hydralora", target_modules="layer", heads=0)


# --- AFLoRA -------------------------------------------------------------------------------------------------


def test_aflora_is_diag_b_b_diag_d_a_and_has_no_scale():
    _, injection, _ = stacked("aflora", rank=3)
    for name, dW_OI in updates(injection).items():
        own = injection.adapters[name]
        expected = torch.diag(own.b_O) @ own.B_OR @ torch.diag(own.d_R) @ own.A_RI
        assert_close(dW_OI, expected.detach())


def test_aflora_starts_as_its_code_does():
    """torch's kaiming_uniform_ for A and B, 0.1 for d, 0 for b: at step 0 b alone has a gradient."""
    model = lone("linear", 300, 200)
    adapter, _ = only(inject(model, "aflora", target_modules="layer", rank=64))
    for p in (adapter.A_RI, adapter.B_OR):
        theirs = nn.init.kaiming_uniform_(torch.empty_like(p))
        assert float(p.detach().abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.01)
        assert float(p.detach().std()) == pytest.approx(float(theirs.std()), rel=0.02)
    assert bool((adapter.d_R == 0.1).all()) and not adapter.b_O.any()
    model(inputs("linear", 200)).square().sum().backward()
    assert [name for name, p in adapter.named_parameters() if p.grad.any()] == ["b_O"]


def test_with_vectors_of_one_aflora_trains_as_lora_of_scale_one():
    found = []
    for name in ("aflora", "lora"):
        model, x = lone("linear"), inputs("linear")
        injection = inject(model, name, target_modules="layer", rank=3)
        adapter, _ = only(injection)
        source = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in (adapter.A_RI, adapter.B_OR):
                p.copy_(torch.randn(p.shape, generator=source, dtype=p.dtype))
            for key, p in adapter.named_parameters():
                if key in ("d_R", "b_O"):
                    p.fill_(1).requires_grad_(False)
        train(injection, lambda model=model, x=x: model(x).square().mean(), steps=5, total=500)
        found.append((model(x), adapter.A_RI, adapter.B_OR))
    assert_close(*found)


class Scores:
    """Algorithm of §3 anew, in plain numbers, on the gradients of one projection each."""

    def __init__(self, names, deltaT, beta1, beta2):
        self.free, self.deltaT, self.betas = list(names), deltaT, (beta1, beta2)
        self.mean = dict.fromkeys(names, 0.0)
        self.spread = dict.fromkeys(names, 0.0)
        self.seen = {name: [] for name in names}

    def step(self, number, gradients, left):
        for name in self.free:
            self.seen[name].append(gradients[name].abs())
        if number % self.deltaT == 0:
            self.check(left)

    def check(self, left):
        beta1, beta2 = self.betas
        scores = {}
        for name, seen in self.seen.items():
            now = sum(seen) / len(seen) if seen else torch.zeros(())
            self.mean[name] = beta1 * self.mean[name] + (1 - beta1) * now
            self.spread[name] = beta2 * self.spread[name] + (1 - beta2) * (now - self.mean[name]).abs()
            scores[name] = float((self.mean[name] * self.spread[name]).mean())
            self.seen[name] = []
        self.free = sorted(sorted(self.free, key=scores.__getitem__)[len(self.free) - left :])


def projections(injection):
    named = injection.named_parameters().items()
    return {name: p for name, p in named if name.endswith(("A_RI", "B_OR"))}


def test_projections_freeze_by_score_on_the_cubic_schedule_and_stay_to_the_bit():
    model, injection, x = stacked("aflora", rank=3, deltaT=4, tinit=2, tfinal=10)
    hooks, total, own = injection.hooks, 30, projections(injection)
    expected, order = Scores(own, 4, 0.85, 0.95), list(own)
    optimizer, counts, kept = torch.optim.AdamW(injection.param_groups(lr=1e-2)), [], {}
    hooks.on_train_begin(total)
    for step in range(1, total + 1):
        loss_of(model, x).backward()
        seen = {name: p.grad.clone() for name, p in own.items()}
        hooks.on_after_backward(Progress(step, total))
        assert {n for n, p in own.items() if p.grad is not None} == set(expected.free)
        left = math.ceil(min(max(1 - (step - 2) / 18, 0.0), 1.0) ** 3 * len(own))
        expected.step(step, seen, left)
        optimizer.step()
        hooks.on_step_end(Progress(step, total))
        optimizer.zero_grad()
        free = {order[i] for i in hooks.free.nonzero().flatten().tolist()}
        assert free == set(expected.free), step
        for name, p in own.items():
            if name not in free:
                assert torch.equal(p, kept.setdefault(name, p.detach().clone()))
        counts.append(len(free))
    assert counts[:2] == [8, 8] and counts[-11:] == [0] * 11
    assert len(set(counts)) > 3 and counts == sorted(counts, reverse=True)
    assert not torch.equal(injection.adapters["layers.0"].b_O, torch.zeros(6, dtype=torch.float64))


def test_square_projections_take_part():
    """The official code freezes those whose sides are equal from the start."""
    model, injection, x = stacked("aflora", rank=3)
    train(injection, lambda: loss_of(model, x), steps=2, total=100)
    assert injection.hooks.free.all() and len(injection.hooks.free) == 8


@pytest.mark.parametrize(
    "hyper, said",
    [({"deltaT": 0}, "deltaT >= 1"), ({"beta2": 1.0}, "beta2 < 1"), ({"d_initial": 0.0}, "d_initial=0")],
)
def test_what_cannot_freeze_or_learn_is_refused(hyper, said):
    with pytest.raises(ValueError, match=f"aflora: .*{said}"):
        inject(lone("linear"), "aflora", target_modules="layer", **hyper)


@pytest.mark.parametrize("tinit, tfinal", [(5, 5), (0.6, 0.4), (11, 0), (0, 11)])
def test_aflora_refuses_a_schedule_without_a_step(tinit, tfinal):
    injection = inject(lone("linear"), "aflora", target_modules="layer", tinit=tinit, tfinal=tfinal)
    with pytest.raises(ValueError, match=f"tinit={tinit} and tfinal={tfinal} leave no step of 10"):
        injection.hooks.on_train_begin(10)
