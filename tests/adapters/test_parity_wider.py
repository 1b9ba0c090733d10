"""Members of the wider zoo against PEFT where it has them, else against their papers' equations.

Shapes: O out, I in, R rank; layers of one matrix in double precision.
"""

import functools
import warnings

import peft
import pytest
import torch
from torch.testing import assert_close

from lora_zoo.conformance.cases import batch, fresh, inputs, lone, only, perturb, randomise
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import inject
from tests.adapters.test_parity import TOLERANCE, Twins, measure

# Our tensor -> PEFT's name of the same one.
NAMES = {
    "hra": {"U_IR": "hra_u"},
    "ia3": {"l": "ia3_l"},
    "loha": {"B_OR": "hada_w1_a", "A_RI": "hada_w1_b", "B2_OR": "hada_w2_a", "A2_RI": "hada_w2_b"},
}
PEFT = {
    "hra": (functools.partial(peft.HRAConfig, r=4), {"rank": 4}),
    "ia3": (functools.partial(peft.IA3Config, feedforward_modules=[]), {}),
    "loha": (functools.partial(peft.LoHaConfig, r=4, alpha=6), {"rank": 4, "alpha": 6.0}),
}


class WiderTwins(Twins):
    def pairs(self, frozen=False):
        names = NAMES[self.injection.variant.name]
        return [
            (tensor, getattr(self.layers[layer], names[name])["default"])
            for layer, adapter in self.injection.adapters.items()
            for name, tensor in adapter.named_parameters()
        ]


@pytest.mark.parametrize("name", PEFT)
def test_outputs_gradients_and_ten_steps_agree_with_peft(name):
    config, hyper = PEFT[name]
    distance = measure(WiderTwins(name, config, **hyper))
    assert distance.outputs < TOLERANCE
    assert distance.gradients < TOLERANCE
    assert distance.ten_steps < TOLERANCE


def adapted(name, **hyper):
    """(adapter, W) of one linear layer (10, 14), every trainable tensor moved away from its start."""
    injection = inject(lone("linear"), name, target_modules="layer", **hyper)
    perturb(injection)
    adapter, host = only(injection)
    return adapter, host.matrix().detach()


# --- LoRA-XS ------------------------------------------------------------------------------------------------


def test_lora_xs_with_the_core_one_adds_the_best_approximation_of_w():
    """§3: U R Σ Vᵀ with R = 1 is the truncated SVD (Eckart-Young), whatever `init` computed it."""
    adapter, W_OI = adapted("lora_xs", rank=3, alpha=3.0)
    U, S, Vh = torch.linalg.svd(W_OI, full_matrices=False)
    with torch.no_grad():
        adapter.R_RR.copy_(torch.eye(3))
    assert_close(adapter.weight(W_OI) - W_OI, U[:, :3] * S[:3] @ Vh[:3])


@pytest.mark.parametrize("alpha, scale", [("auto", 4.0), (2.0, 0.5)])
def test_lora_xs_is_s_u_r_sigma_v(alpha, scale):
    adapter, W_OI = adapted("lora_xs", rank=4, alpha=alpha)
    U, S, Vh = torch.linalg.svd(W_OI, full_matrices=False)
    sign_R = (U[:, :4] * adapter.U_OR).sum(0).sign()  # a singular pair's sign is free
    core = sign_R[:, None] * adapter.R_RR * sign_R
    assert_close(adapter.weight(W_OI) - W_OI, scale * U[:, :4] @ core @ (S[:4, None] * Vh[:4]))


# --- HRA ----------------------------------------------------------------------------------------------------


def test_hra_is_the_chain_of_householder_matrices():
    adapter, W_OI = adapted("hra", rank=4)
    chain_II = torch.eye(14, dtype=torch.float64)
    for u_I in adapter.U_IR.detach().T:
        chain_II = chain_II @ (torch.eye(14, dtype=torch.float64) - 2 * torch.outer(u_I, u_I) / u_I.dot(u_I))
    assert_close(adapter.weight(W_OI), W_OI @ chain_II)


def test_hra_refuses_an_odd_rank_by_name():
    with pytest.raises(ValueError, match=r"hra cannot adapt layer.*rank must be even.*got 3"):
        inject(lone("linear"), "hra", target_modules="layer", rank=3)


# --- (IA)³ --------------------------------------------------------------------------------------------------

# Model -> our targets, PEFT's expressions for outputs and for feedforward inputs.
MODULES = {
    "llama": (["k", "v", "down"], r".*\.(k|v)_proj", r".*\.down_proj"),
    "bert": (["k", "v", "down"], r".*\.self\.(key|value)", r".*\.\d+\.output\.dense"),
    "gpt2": (["c_attn", "down"], r".*\.c_attn", r".*\.mlp\.c_proj"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_ia3_of_a_whole_model_agrees_with_peft_s_before_and_after_merging(kind):
    """Keys and values with the biases of BERT and GPT-2, whose Conv1D is transposed; Llama has none."""
    ours, theirs = fresh(kind)[0].double(), fresh(kind)[0].double()
    for model in (ours, theirs):
        randomise([p for n, p in model.named_parameters() if n.endswith("bias")], 0.3)
    targets, outputs, feedforward = MODULES[kind]
    injection = inject(ours, "ia3", target_modules=targets)
    perturb(injection)
    config = peft.IA3Config(target_modules=f"{outputs}|{feedforward}", feedforward_modules=feedforward)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fan_in_fan_out, which PEFT sets itself
        theirs = peft.get_peft_model(theirs, config)
    layers = {n: theirs.base_model.model.get_submodule(n).ia3_l["default"] for n in injection.adapters}
    assert len(layers) == sum(isinstance(m, peft.tuners.ia3.IA3Layer) for m in theirs.modules())
    with torch.no_grad():
        for name, l in layers.items():
            l.data = injection.adapters[name].l.detach().clone().view_as(l)
    losses = [model(**batch(kind)) for model in (ours, theirs)]
    assert_close(losses[0].logits, losses[1].logits)
    for found in losses:
        found.loss.backward()
    for name, l in layers.items():
        assert_close(injection.adapters[name].l.grad, l.grad.flatten())
        assert l.grad.any()
    injection.merge()
    assert_close(ours(**batch(kind)).logits, theirs.merge_and_unload()(**batch(kind)).logits)


def test_ia3_multiplies_outputs_with_their_bias_and_inputs_of_the_roles_that_are_named():
    net = torch.nn.ModuleDict({"k_proj": torch.nn.Linear(6, 4), "up_proj": torch.nn.Linear(6, 4)})
    frozen, x = {name: layer for name, layer in net.items()}, torch.randn(3, 6)
    injection = inject(net, "ia3", target_modules=["k", "up"], feedforward=["up"])
    perturb(injection)
    l_O, l_I = (injection.adapters[name].l for name in ("k_proj", "up_proj"))
    assert_close(net["k_proj"](x), l_O * frozen["k_proj"](x))
    assert_close(net["up_proj"](x), frozen["up_proj"](l_I * x))
    assert injection.trainable() == 4 + 6


def test_ia3_s_gains_do_not_decay_to_zero():
    injection = inject(lone("linear"), "ia3", target_modules="layer")
    assert [group["weight_decay"] for group in injection.param_groups(lr=0.1, weight_decay=0.5)] == [0.0]


def test_ia3_refuses_a_role_that_does_not_exist():
    with pytest.raises(ValueError, match=r"ia3: feedforward: unknown role 'donw'. Did you mean 'down'"):
        inject(lone("linear"), "ia3", target_modules="layer", feedforward=["donw"])


def test_ia3_refuses_one_string_where_it_takes_a_list():
    with pytest.raises(ValueError, match=r"ia3: feedforward must be a list, each a string; got 'down'"):
        inject(lone("linear"), "ia3", target_modules="layer", feedforward="down")


# --- LoHa ---------------------------------------------------------------------------------------------------


def test_loha_s_second_pair_has_the_widths_of_peft_s():
    adapter, _ = only(inject(lone("linear", 300, 400), "loha", target_modules="layer", rank=8))
    config = peft.LoHaConfig(r=8, alpha=8, target_modules=["layer"], init_weights=True)
    theirs = peft.get_peft_model(lone("linear", 300, 400), config).base_model.model.layer
    for ours, name in ((adapter.A2_RI, "hada_w1_b"), (adapter.B2_OR, "hada_w1_a")):
        other = getattr(theirs, name)["default"]
        assert float(ours.detach().std()) == pytest.approx(float(other.detach().std()), rel=0.06)


def test_loha_is_the_product_of_two_low_rank_matrices_entry_by_entry():
    """Proposition 1, with the rank of up to r² that it promises."""
    adapter, W_OI = adapted("loha", rank=3, alpha=6.0)
    (B1, A1), (B2, A2) = (adapter.B_OR, adapter.A_RI), (adapter.B2_OR, adapter.A2_RI)
    expected = torch.einsum("or,ri,os,si->oi", B1, A1, B2, A2)
    assert_close(adapter.weight(W_OI) - W_OI, 2 * expected)
    assert torch.linalg.matrix_rank(expected) == 9


# --- SoRA ---------------------------------------------------------------------------------------------------


def test_sora_is_lora_with_a_gate_between_its_factors():
    adapter, W_OI = adapted("sora", rank=4, alpha=6.0)
    expected = torch.einsum("or,r,ri->oi", adapter.B_OR, adapter.g_R, adapter.A_RI)
    assert_close(adapter.weight(W_OI) - W_OI, 1.5 * expected)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_sora_s_gates_are_soft_thresholded_by_the_step_s_rate_times_lambda(rate):
    """§3.2: g ← sign(g) max(|g| - η λ, 0) after the step; the official code zeroes twice as wide a band."""
    injection = inject(lone("linear"), "sora", target_modules="layer", rank=5, l1_weight=2.0)
    optimizer = injection.optimizer(torch.optim.SGD, lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate)
    g_R, threshold = only(injection)[0].g_R, 0.2 * rate
    with torch.no_grad():
        g_R.copy_(threshold * torch.tensor([0.25, -1.5, 1.1, -1.0, 7.0]))
    optimizer.step()
    assert_close(g_R[1].item(), -1.5 * threshold)  # a step that was skipped has no gradients
    for p in injection.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_close((g_R / threshold).tolist(), [0.0, -0.5, 0.1, 0.0, 6.0])


def walked(name, opened=False, **hyper):
    """A and B after five SGD steps of both; `opened`: with gates of one."""
    model, x = lone("linear"), inputs("linear")
    injection = inject(model, name, target_modules="layer", rank=4, **hyper)
    adapter, _ = only(injection)
    if opened:
        adapter.g_R.data.fill_(1)
    optimizer = torch.optim.SGD([adapter.A_RI, adapter.B_OR], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    return adapter.A_RI.detach(), adapter.B_OR.detach()


def test_sora_with_open_gates_walks_as_lora_does():
    assert_close(walked("sora", opened=True), walked("lora"))


def test_sora_s_gates_do_not_decay():
    injection = inject(lone("linear"), "sora", target_modules="layer", rank=4)
    gates = only(injection)[0].g_R
    for group in injection.param_groups(lr=0.1, weight_decay=0.5):
        assert group["weight_decay"] == (0.0 if any(p is gates for p in group["params"]) else 0.5)


def test_sora_refuses_a_negative_penalty():
    with pytest.raises(ValueError, match=r"l1_weight must be 0 or more; got -1"):
        inject(lone("linear"), "sora", target_modules="layer", l1_weight=-1.0)


# --- DyLoRA -------------------------------------------------------------------------------------------------


def widths(seed, steps):
    """The ranks of the layers at each of `steps`."""
    injection = inject(lone("linear"), "dylora", target_modules="layer", rank=4, seed=seed)
    found = []
    for step in steps:
        with injection.hooks.forward_context(Progress(step, 1000)):
            found.append(only(injection)[0].width)
        assert only(injection)[0].width == 4
    return found


def test_dylora_draws_every_rank_equally_often_from_seed_and_step_alone():
    drawn = widths(0, range(1, 2001))
    assert set(drawn) == {1, 2, 3, 4}
    assert all(abs(drawn.count(b) - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for b in (1, 2, 3, 4))
    assert widths(0, range(1901, 2001)) == drawn[1900:], "a run that goes on draws other ranks"
    assert widths(1, range(1, 2001)) != drawn


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_dylora_at_a_rank_is_the_lora_of_its_leading_rows(b):
    adapter, W_OI = adapted("dylora", rank=4, alpha=6.0)
    theirs = inject(lone("linear"), "lora", target_modules="layer", rank=b, alpha=6.0)
    with torch.no_grad():
        only(theirs)[0].A_RI.copy_(adapter.A_RI[:b])
        only(theirs)[0].B_OR.copy_(adapter.B_OR[:, :b])
    with adapter.truncated(b):
        assert_close(adapter.weight(W_OI), only(theirs)[0].weight(W_OI))


@pytest.mark.parametrize("update", ["all", "last"])
def test_dylora_trains_the_rows_up_to_b_or_the_last_alone(update):
    model, x = lone("linear"), inputs("linear")
    injection = inject(model, "dylora", target_modules="layer", rank=4, update=update)
    perturb(injection)
    adapter, _ = only(injection)
    for step in range(1, 12):
        model.zero_grad()
        with injection.hooks.forward_context(Progress(step, 12)):
            b = adapter.width
            model(x).square().mean().backward()
        first = 0 if update == "all" else b - 1
        trains = [first <= row < b for row in range(4)]
        assert adapter.A_RI.grad.any(dim=1).tolist() == trains
        assert adapter.B_OR.grad.any(dim=0).tolist() == trains


# --- NOLA ---------------------------------------------------------------------------------------------------


def test_nola_is_the_product_of_two_combinations_of_random_matrices():
    """§3, eq. 4, summed basis by basis, with the bases' width of the authors' code."""
    adapter, W_OI = adapted("nola", rank=3, alpha=6.0, num_basis=5)
    bases = adapter.bases
    A_RI, B_OR = adapter.A0_RI.clone(), torch.zeros(10, 3, dtype=torch.float64)
    for m in range(5):
        A_RI += adapter.a_M[m].detach() / 5**0.5 * bases.A_RI[m::5][:3]
        B_OR += adapter.b_M[m].detach() / 5**0.5 * bases.B_OR[:, m::5][:, :3]
    assert_close(adapter.weight(W_OI) - W_OI, 2 * B_OR @ A_RI)
    assert 0.9 < float(bases.A_RI.abs().max()) <= 1 and 0.9 < float(bases.B_OR.abs().max()) <= 1


def test_nola_has_as_many_parameters_as_coefficients_whatever_the_rank():
    for rank in (1, 8):
        assert inject(lone("linear"), "nola", target_modules="layer", rank=rank).trainable() == 1024
    small = inject(lone("linear"), "nola", target_modules="layer", rank=2, budget=61)
    assert small.hyper["num_basis"] == 30 and small.trainable() == 60


def test_nola_refuses_to_combine_nothing():
    with pytest.raises(ValueError, match=r"num_basis must be at least 1; got 0"):
        inject(lone("linear"), "nola", target_modules="layer", num_basis=0)
