"""Parity with PEFT on the same weights, factors and data; `python tests/adapters/test_parity.py` prints it.

Where we differ from PEFT on purpose, `DIFFERENCES` says why and names the test that shows it.
"""

import contextlib
import copy
import functools
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import peft
import peft.optimizers.lorafa
import peft.tuners.lora.layer
import pytest
import torch
from peft.optimizers import (
    create_lorafa_optimizer,
    create_loraplus_optimizer,
    create_riemannian_optimizer,
)
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from lora_zoo.conformance.cases import inputs, lone, perturb, randomise
from lora_zoo.core.hooks import Progress
from lora_zoo.core.init import initial_factors
from lora_zoo.core.seeding import derived_seed
from lora_zoo.injection.inject import inject
from lora_zoo.variants.adaptive.batched import views
from tests.lent import Lent

# (difference, reason, the test that shows it or "" where it is a matter of interface alone)
DIFFERENCES = [
    (
        "a zero row of W leaves DoRA finite",
        "pruned models, and our own pocket, have such rows; m / |V| must not be 0 / 0",
        "test_dora_survives_a_zero_row_where_peft_gives_nan",
    ),
    (
        "A's start is keyed by layer name and seed",
        "adding a target must not change another layer's start",
        "test_adding_a_target_shifts_peft_s_start_and_not_ours",
    ),
    (
        "nothing reads the global random stream",
        "adding one variant must not shift another's data order or dropout",
        "test_peft_reads_the_global_stream_and_we_do_not",
    ),
    (
        "a residual start leaves the stored base alone",
        "disabling gives back W, not W - s B0 A0",
        "test_disabling_pissa_gives_w_and_peft_gives_the_residual",
    ),
    (
        "merging keeps the original weights",
        "ten rounds of merge and unmerge in bfloat16 change PEFT's base",
        "test_merging_ten_times_in_bfloat16_changes_peft_s_base_and_not_ours",
    ),
    (
        "dropout with a residual start warns; with DoRA it is refused",
        "it changes the model's function at step 0 in training mode, here as in PEFT",
        "test_dropout_with_a_residual_start_is_peft_s_and_warns",
    ),
    (
        "LoRA+: a head's bias is not in B's group",
        "λ belongs to B; PEFT gives every 1-D tensor λ times the rate",
        "test_lora_plus_leaves_the_head_at_the_plain_rate",
    ),
    (
        "LoRA+: an embedding's factors learn at the rates of A and B",
        "PEFT pins both to loraplus_lr_embedding = 1e-6, whatever lr is",
        "test_lora_plus_gives_embeddings_the_rates_of_a_and_b",
    ),
    (
        "LoRA+: weight_decay is respected",
        "PEFT ignores it without a word in favour of loraplus_weight_decay",
        "test_lora_plus_respects_weight_decay",
    ),
    (
        "LoRA-FA: the gradient is projected before clipping, in float32",
        "any optimiser can follow; PEFT projects inside its own optimiser, in bfloat16 where available",
        "test_lora_fa_projects_before_clipping",
    ),
    (
        "Riemannian LoRA: an embedding's factors are preconditioned as well",
        "the metric is that of B A, wherever it is; PEFT leaves embeddings at the plain gradient",
        "test_riemannian_lora_s_steps_are_the_paper_s_on_every_kind_of_layer",
    ),
    (
        "AdaLoRA: equal first and final rank is a run without pruning",
        "PEFT crashes in kthvalue(0)",
        "test_adalora_of_equal_ranks_trains_where_peft_crashes",
    ),
    (
        "AdaLoRA: the regulariser is apart from the model's loss",
        "a regulariser never enters the reported task loss",
        "test_adalora_s_regulariser_stays_out_of_the_loss",
    ),
    ("AdaLoRA: tinit, tfinal may be shares of the run", "one setting serves runs of any length", ""),
    (
        "VeRA: `nested` projection by default",
        "a layer's slice does not depend on the other targets; `peft` draws PEFT's to the bit",
        "test_vera_draws_peft_s_projection_to_the_bit_on_request",
    ),
    (
        "Conv1D: OLoRA starts on the transposed matrix",
        "PEFT does not transpose and fails on a matrix that is not square",
        "test_olora_starts_on_conv1d_where_peft_fails",
    ),
    ("adapter tensors are float32 on a half-precision base", "norms and Adam states need it", ""),
]


class Net(nn.Module):
    """Two layers and a loss; the names end in nothing that PEFT could mistake."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, target):
        y = self.second(torch.tanh(self.first(x)))
        return SimpleNamespace(y=y, loss=(y - target).square().mean())


PAIRS_OF_LAYERS = {
    "linear": lambda: (nn.Linear(14, 10), nn.Linear(10, 8, bias=False)),
    "conv1d": lambda: (Conv1D(10, 14), Conv1D(8, 10)),
    "embedding": lambda: (nn.Embedding(14, 10), nn.Linear(10, 8)),
}
# Our tensor -> where PEFT's layer keeps the same one.
TENSORS = {
    "A_RI": ("lora_A", "lora_embedding_A"),
    "B_OR": ("lora_B", "lora_embedding_B"),
    "E_R": ("lora_E",),
    "m_O": ("lora_magnitude_vector",),
    "b_O": ("vera_lambda_b",),
    "d_R": ("vera_lambda_d",),
}


def counterpart(layer, name):
    """The tensor of PEFT's `layer` that is our `name`."""
    stores = [getattr(layer, store) for store in TENSORS[name] if hasattr(layer, store)]
    held = next(store["default"] for store in stores if "default" in store)
    return held if isinstance(held, torch.Tensor) else held.weight


class Twins:
    """Our adapted model and PEFT's, on the same weights, with the same start where `same_start`."""

    def __init__(
        self, variant, config, kind="linear", same_start=True, around=contextlib.nullcontext, **hyper
    ):
        torch.manual_seed(0)
        base = Net(*PAIRS_OF_LAYERS[kind]())
        randomise(base.parameters(), 0.4, 3, set_to=True)
        self.kind, self.ours = kind, copy.deepcopy(base)
        self.injection = inject(self.ours, variant, target_modules=["first", "second"], **hyper)
        self.steps = 0
        with around(self.injection), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.theirs = peft.get_peft_model(base, config(target_modules=["first", "second"]))
        self.layers = {name: self.theirs.base_model.model.get_submodule(name) for name in ("first", "second")}
        if same_start:
            perturb(self.injection, 0.2)
            self.align()
        for model in (self.ours, self.theirs):
            model.train()

    @torch.no_grad()
    def align(self):
        for ours, theirs in self.pairs(frozen=True):
            theirs.copy_(ours.view_as(theirs))

    def pairs(self, frozen=False):
        """(ours, theirs) for every tensor that trains, and for frozen factors too if asked."""
        return [
            (tensor, counterpart(self.layers[layer], name))
            for layer, adapter in self.injection.adapters.items()
            for name, tensor in adapter.named_parameters()
            if frozen or tensor.requires_grad
        ]

    def batch(self):
        x = inputs(self.kind, 14, torch.float32, seed=100 + self.steps, batch=(6,))
        target = torch.randn(6, 8, generator=torch.Generator().manual_seed(200 + self.steps))
        return x, target

    def outputs(self):
        """Ours runs first, so that a dropout lent to PEFT repeats our masks."""
        x, target = self.batch()
        return self.ours(x, target).y, self.theirs.base_model(x, target).y

    def backward(self):
        x, target = self.batch()
        (self.ours(x, target).loss + self.injection.hooks.regularizer()).backward()
        self.theirs.base_model(x, target).loss.backward()

    def lend_dropout(self):
        for name, layer in self.layers.items():
            layer.lora_dropout["default"] = Lent(self.injection.adapters[name].dropout)
        return self


@dataclass
class Distance:
    """Largest absolute differences."""

    outputs: float
    gradients: float
    ten_steps: float


def apart(pairs):
    return max(float((ours - theirs.view_as(ours)).detach().abs().max()) for ours, theirs in pairs)


def adamw(parameters, **more):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, **more)


def plain_optimisers(twins):
    return adamw(twins.injection.param_groups(lr=1e-2)), adamw([theirs for _, theirs in twins.pairs()])


def measure(twins, optimisers=plain_optimisers, steps=10, total=None, after_step=lambda twins: None):
    """Compare outputs and gradients at the start, and outputs and tensors after `steps` optimiser steps."""
    outputs = apart([twins.outputs()])
    mine, other = optimisers(twins)
    gradients = None
    for step in range(1, steps + 1):
        twins.steps, progress = step, Progress(step, total or steps)
        twins.backward()
        if gradients is None:
            gradients = apart([(ours.grad, theirs.grad) for ours, theirs in twins.pairs()])
        twins.injection.hooks.on_after_backward(progress)
        mine.step()
        other.step()
        twins.injection.hooks.on_step_end(progress)
        after_step(twins)
        mine.zero_grad()
        other.zero_grad()
    return Distance(outputs, gradients, apart([twins.outputs(), *twins.pairs()]))


# --- the cases ---------------------------------------------------------------------------------------------


def lora_config(**more):
    return functools.partial(peft.LoraConfig, r=4, lora_alpha=6, **more)


def lora(kind):
    return measure(Twins("lora", lora_config(fan_in_fan_out=kind == "conv1d"), kind, rank=4, alpha=6.0))


def lora_dropout():
    twins = Twins("lora", lora_config(lora_dropout=0.3), rank=4, alpha=6.0, lora_dropout=0.3)
    return measure(twins.lend_dropout())


def rslora():
    return measure(Twins("rslora", lora_config(use_rslora=True), rank=4, alpha=6.0))


def dora(kind="linear"):
    config = lora_config(use_dora=True, fan_in_fan_out=kind == "conv1d")
    return measure(Twins("dora", config, kind, rank=4, alpha=6.0))


def dora_dropout():
    config = lora_config(use_dora=True, lora_dropout=0.3)
    return measure(Twins("dora", config, rank=4, alpha=6.0, lora_dropout=0.3).lend_dropout())


def vera():
    config = functools.partial(peft.VeraConfig, r=4, projection_prng_key=7)
    return measure(Twins("vera", config, rank=4, projection="peft", projection_prng_key=7))


def residual(variant, start, **more):
    config = lora_config(init_lora_weights=start)
    return measure(Twins(variant, config, same_start=False, rank=4, alpha=6.0, **more))


@contextlib.contextmanager
def peft_on_our_streams(injection):
    """PEFT's fast SVD reads the global stream: give it, layer by layer, the number that ours starts from."""
    original, names = peft.tuners.lora.layer.svd_lowrank, iter(injection.adapters)

    def seeded(*args, **kwargs):
        torch.manual_seed(derived_seed("init", injection.seed, next(names)))
        return original(*args, **kwargs)

    peft.tuners.lora.layer.svd_lowrank = seeded
    try:
        yield
    finally:
        peft.tuners.lora.layer.svd_lowrank = original


def pissa_niter():
    config = lora_config(init_lora_weights="pissa_niter_16")
    hyper = dict(rank=4, alpha=6.0, init="pissa_niter_16")
    return measure(Twins("pissa", config, same_start=False, around=peft_on_our_streams, **hyper))


def milora():
    """PEFT knows no MiLoRA: a plain LoRA whose base is the residual and whose factors are ours."""
    twins = Twins("milora", lora_config(), same_start=False, rank=4, alpha=6.0)
    twins.align()
    for name, adapter in twins.injection.adapters.items():
        twins.layers[name].base_layer.weight.data -= adapter.scale * adapter.B0_OR @ adapter.A0_RI
    return measure(twins)


def lora_plus_optimisers(twins):
    theirs = create_loraplus_optimizer(
        twins.theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=3.0, loraplus_weight_decay=0.1
    )
    return torch.optim.AdamW(twins.injection.param_groups(lr=1e-2, weight_decay=0.1)), theirs


def lora_plus():
    twins = Twins("lora_plus", lora_config(), rank=4, alpha=6.0, loraplus_lr_ratio=3.0)
    return measure(twins, lora_plus_optimisers)


def riemannian_optimisers(twins):
    theirs = create_riemannian_optimizer(twins.theirs, torch.optim.AdamW, lr=1e-2, reg=0.02, weight_decay=0.1)
    return twins.injection.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1), theirs


def riemannian_lora(kind):
    config = lora_config(fan_in_fan_out=kind == "conv1d")
    return measure(Twins("riemannian_lora", config, kind, rank=4, alpha=6.0, reg=0.02), riemannian_optimisers)


def lora_fa_freeze():
    twins = Twins("lora_fa", lora_config(), rank=4, alpha=6.0)
    for layer in twins.layers.values():
        layer.lora_A.requires_grad_(False)
    return measure(twins)


def lora_fa_optimisers(twins):
    """Both without the epsilon, which PEFT's optimiser adds before the bias correction and torch's after."""
    theirs = create_lorafa_optimizer(twins.theirs, r=4, lora_alpha=6, lr=1e-2)
    for group in theirs.param_groups:
        group["eps"] = 1e-12
    return adamw(twins.injection.param_groups(lr=1e-2), eps=1e-12), theirs


def lora_fa_projected():
    original, peft.optimizers.lorafa.is_bf16_available = (
        peft.optimizers.lorafa.is_bf16_available,
        lambda *_: False,
    )
    try:
        return measure(
            Twins("lora_fa", lora_config(), rank=4, alpha=6.0, mode="projected"), lora_fa_optimisers
        )
    finally:
        peft.optimizers.lorafa.is_bf16_available = original


SCHEDULE = dict(tinit=2, tfinal=3, deltaT=2, beta1=0.8, beta2=0.9)


def adalora_twins(total=20):
    config = functools.partial(
        peft.AdaLoraConfig,
        init_r=6,
        target_r=3,
        lora_alpha=12,
        total_step=total,
        orth_reg_weight=0.3,
        **SCHEDULE,
    )
    return Twins("adalora", config, rank=3, init_r=6, alpha=12.0, orth_reg_weight=0.3, **SCHEDULE)


def allocate_and_compare(twins):
    """PEFT's allocation, with exactly our mask after every step."""
    twins.theirs.base_model.update_and_allocate(twins.steps)
    for name, adapter in twins.injection.adapters.items():
        theirs = counterpart(twins.layers[name], "E_R").view(-1) != 0
        assert torch.equal(adapter.E_R != 0, theirs), f"masks differ at step {twins.steps}"


def adalora():
    return measure(adalora_twins(), steps=20, after_step=allocate_and_compare)


CASES = {
    "LoRA, Linear": functools.partial(lora, "linear"),
    "LoRA, Conv1D": functools.partial(lora, "conv1d"),
    "LoRA, Embedding": functools.partial(lora, "embedding"),
    "LoRA, dropout 0.3": lora_dropout,
    "rsLoRA": rslora,
    "DoRA, Linear": dora,
    "DoRA, Conv1D": functools.partial(dora, "conv1d"),
    "DoRA, Embedding": functools.partial(dora, "embedding"),
    "DoRA, dropout 0.3": dora_dropout,
    "AdaLoRA, 20 steps with allocation": adalora,
    "VeRA, projection=peft": vera,
    "PiSSA, exact": functools.partial(residual, "pissa", "pissa"),
    "PiSSA, pissa_niter_16": pissa_niter,
    "MiLoRA, by hand in PEFT": milora,
    "LoRA, OLoRA start": functools.partial(residual, "lora", "olora", init="olora"),
    "LoRA+, its optimiser": lora_plus,
    "Riemannian LoRA, its optimiser": functools.partial(riemannian_lora, "linear"),
    "Riemannian LoRA, Conv1D": functools.partial(riemannian_lora, "conv1d"),
    "LoRA-FA, mode=freeze": lora_fa_freeze,
    "LoRA-FA, mode=projected": lora_fa_projected,
}
TOLERANCE = 1e-5


@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_ten_steps_agree_with_peft(case):
    distance = CASES[case]()
    assert distance.outputs < TOLERANCE
    assert distance.gradients < TOLERANCE
    assert distance.ten_steps < TOLERANCE


def test_every_deliberate_difference_names_a_test_that_exists():
    for difference, reason, test in DIFFERENCES:
        assert difference and reason
        assert not test or callable(globals().get(test)), test


# --- starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, start, init",
    [("pissa", "pissa", "pissa"), ("lora", "olora", "olora"), ("dora", "pissa", "pissa")],
)
def test_residual_starts_have_peft_s_factors_and_residual(variant, start, init):
    config = lora_config(init_lora_weights=start, use_dora=variant == "dora")
    twins = Twins(variant, config, same_start=False, rank=4, alpha=6.0, init=init)
    for name, adapter in twins.injection.adapters.items():
        layer, W_OI = twins.layers[name], twins.injection.matrices[name].host.matrix()
        theirs = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        ours = adapter.scale * adapter.B_OR @ adapter.A_RI
        assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        assert_close(W_OI - ours, layer.base_layer.weight, rtol=0, atol=TOLERANCE)
        if variant == "dora":
            assert_close(adapter.m_O, counterpart(layer, "m_O"), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(10, 14), (14, 10), (12, 12)])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_milora_trains_the_minor_part_of_w(kind, shape):
    """s B0 A0 is W on its minor right singular vectors, from the eigenvectors of Wᵀ W; the rest stays."""
    model = lone(kind, *shape)
    injection = inject(model, "milora", target_modules="layer", rank=3, alpha=7.0)
    adapter, W_OI = injection.adapters["layer"], injection.matrices["layer"].host.matrix().detach()
    values, V_II = torch.linalg.eigh(W_OI.T @ W_OI)
    used = values.argsort()[max(0, shape[1] - shape[0]) :][:3]
    minor_OI = W_OI @ V_II[:, used] @ V_II[:, used].T
    start_OI = adapter.scale * adapter.B_OR @ adapter.A_RI
    assert_close(start_OI, minor_OI, rtol=0, atol=1e-8)
    rest = torch.linalg.svdvals(W_OI - start_OI)
    assert_close(rest[:-3], torch.linalg.svdvals(W_OI)[:-3])
    assert_close(rest[-3:], torch.zeros(3, dtype=rest.dtype), rtol=0, atol=1e-8)
    assert_close(adapter.A_RI.norm(dim=1), adapter.B_OR.norm(dim=0))


def test_oversampling_brings_the_fast_svd_close_to_the_exact_one():
    """PiSSA §4.1: with q = R + 10 four iterations suffice; without, they leave an error."""
    source = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(60, 60, generator=source, dtype=torch.float64))[0] for _ in "UV")
    W_OI = U * torch.arange(1, 61, dtype=torch.float64) ** -0.5 @ V.T
    best = torch.linalg.svdvals(W_OI)[4:].norm()
    excess = {}
    for init in ("pissa", "pissa_niter_4", "pissa_halko_4"):
        A_RI, B_OR = initial_factors(init, W_OI, rank=4, scale=2.0, seed=0, matrix="layer")[0]
        excess[init] = float((W_OI - 2.0 * B_OR @ A_RI).norm() / best) - 1
    assert abs(excess["pissa"]) < 1e-9
    assert excess["pissa_halko_4"] < 1e-3 < excess["pissa_niter_4"]


def test_lora_starts_have_the_width_of_peft_s():
    """Kaiming: std 1/√(3 I) and bound 1/√I. Gaussian: std 1/R."""
    for init, width in (("kaiming", (3 * 400) ** -0.5), ("gaussian", 1 / 8)):
        model = lone("linear", 300, 400)
        A_RI = (
            inject(model, "lora", target_modules="layer", rank=8, init=init).adapters["layer"].A_RI.detach()
        )
        assert float(A_RI.std()) == pytest.approx(width, rel=0.05)
        assert abs(float(A_RI.mean())) < 0.1 * width
        theirs = (
            peft.get_peft_model(
                lone("linear", 300, 400),
                peft.LoraConfig(
                    r=8, target_modules=["layer"], init_lora_weights=True if init == "kaiming" else init
                ),
            )
            .base_model.model.layer.lora_A["default"]
            .weight
        )
        assert float(theirs.detach().std()) == pytest.approx(float(A_RI.std()), rel=0.06)
        if init == "kaiming":
            assert 0.97 / 20 < float(A_RI.abs().max()) <= 1 / 20


def test_an_embedding_starts_with_a_zero_and_b_standard_normal_as_in_peft():
    adapter = inject(lone("embedding", 300, 400), "lora", target_modules="layer").adapters["layer"]
    assert not adapter.A_RI.any()
    assert float(adapter.B_OR.detach().std()) == pytest.approx(1, rel=0.05)
    theirs = peft.get_peft_model(lone("embedding", 300, 400), peft.LoraConfig(target_modules=["layer"]))
    layer = theirs.base_model.model.layer
    assert not layer.lora_embedding_A["default"].any()
    assert float(layer.lora_embedding_B["default"].detach().std()) == pytest.approx(1, rel=0.05)


def test_adalora_starts_with_widths_of_0_02_and_zero_values():
    adapter = inject(lone("linear", 300, 400), "adalora", target_modules="layer").adapters["layer"]
    assert not adapter.E_R.any()
    for factor in (adapter.A_RI, adapter.B_OR):
        assert float(factor.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_vera_draws_peft_s_projection_to_the_bit_on_request():
    config = functools.partial(peft.VeraConfig, r=4, projection_prng_key=7)
    twins = Twins("vera", config, rank=4, projection="peft", projection_prng_key=7, same_start=False)
    pair = twins.injection.adapters["first"].pair
    assert torch.equal(pair.A_RI, twins.theirs.base_model.vera_A["default"])
    assert torch.equal(pair.B_OR, twins.theirs.base_model.vera_B["default"])
    for ours, theirs in twins.pairs():
        assert torch.equal(ours, theirs)
    nested = inject(Net(*PAIRS_OF_LAYERS["linear"]()), "vera", target_modules=["first"], rank=4)
    B_OR, A_RI = nested.adapters["first"].factors()
    assert A_RI.abs().max() <= 1 and not B_OR.any()


def test_vera_s_nested_projection_has_kaiming_s_bounds_for_each_layer_s_own_width():
    adapter = inject(lone("linear", 200, 300), "vera", target_modules="layer", rank=16).adapters["layer"]
    with torch.no_grad():
        adapter.b_O.fill_(1)
        adapter.d_R.fill_(1)
    B_OR, A_RI = adapter.factors()
    widths = (6 / 300) ** 0.5 * (6 / 16) ** 0.5
    assert float((B_OR.abs().max() * A_RI.abs().max()).detach()) == pytest.approx(widths, rel=0.01)


# --- AdaLoRA's schedule ------------------------------------------------------------------------------------


def test_adalora_s_budget_is_peft_s_at_every_step():
    twins = adalora_twins()
    budget = twins.injection.hooks.budget
    allocator = twins.theirs.base_model.rankallocator
    for step in range(21):
        assert budget(Progress(step, 20)) == allocator.budget_schedule(step)[0], step
    stated = {2: 12, 3: 10, 4: 9, 9: 6, 10: 6, 17: 6, 18: 6}  # method sheet, section 5
    assert {step: budget(Progress(step, 20)) for step in stated} == stated


def test_adalora_s_masks_and_final_ranks_are_peft_s():
    twins = adalora_twins()
    with torch.no_grad():
        twins.injection.adapters["first"].E_R.mul_(4)
    twins.align()
    measure(twins, steps=20, after_step=allocate_and_compare)
    pattern = twins.theirs.peft_config["default"].rank_pattern
    ranks = {name.split(".")[0]: sum(kept) for name, kept in pattern.items()}
    assert ranks == {n: int(a.E_R.count_nonzero()) for n, a in twins.injection.adapters.items()}
    assert sum(ranks.values()) == 6
    assert len(set(ranks.values())) > 1, "the budget was shared out evenly: this run shows nothing"


def test_adalora_s_sensitivity_and_uncertainty_are_peft_s():
    twins = adalora_twins()
    measure(twins, steps=8, total=20, after_step=allocate_and_compare)
    allocator, hooks = twins.theirs.base_model.rankallocator, twins.injection.hooks
    seen = hooks.sensitivity
    for flat, other in ((seen.mean_N, allocator.exp_avg_ipt), (seen.spread_N, allocator.exp_avg_unc)):
        shaped = views(flat, hooks.triplets)
        found = {id(p): view for p, view in zip(hooks.triplets, shaped, strict=True)}
        own = [twins.injection.adapters[layer] for layer in ("first", "second")]
        mine = torch.cat([found[id(p)].flatten() for a in own for p in (a.E_R, a.A_RI, a.B_OR)])
        theirs = [
            next(t for n, t in other.items() if layer in n and f".lora_{factor}." in n).flatten()
            for layer in ("first", "second")
            for factor in "EAB"
        ]
        assert mine.any()
        assert_close(mine, torch.cat(theirs), rtol=1e-3, atol=1e-9)


def test_adalora_s_regulariser_is_peft_s():
    twins = adalora_twins()
    x, target = twins.batch()
    reported = twins.theirs.base_model.model(x, target).loss
    penalty = twins.theirs.base_model(x, target).loss - reported
    assert_close(twins.injection.hooks.regularizer(), penalty, rtol=0, atol=1e-6)


def test_adalora_s_paper_regulariser_is_the_sum_of_squares():
    model = lone("linear")
    injection = inject(model, "adalora", target_modules="layer", rank=2, orth_reg="sum_squared")
    perturb(injection)
    adapter = injection.adapters["layer"]
    eye = torch.eye(3, dtype=torch.float64)
    grams = (adapter.A_RI @ adapter.A_RI.T, adapter.B_OR.T @ adapter.B_OR)
    expected = 0.1 * sum((gram - eye).square().sum() for gram in grams)
    assert_close(injection.hooks.regularizer(), expected)


@pytest.mark.parametrize("sensitivity", ["pre_step", "post_step"])
def test_adalora_s_sensitivity_takes_the_weights_from_before_or_after_the_step(sensitivity):
    """The paper's Algorithm 1 has those before; its code, PEFT's and our default those after."""
    model, x = lone("linear"), inputs("linear")
    injection = inject(
        model, "adalora", target_modules="layer", rank=2, sensitivity=sensitivity, tinit=2, tfinal=1
    )
    perturb(injection)
    hooks, progress = injection.hooks, Progress(1, 9)
    model(x).square().mean().backward()
    before = [p.detach().clone() for p in hooks.triplets]
    hooks.on_after_backward(progress)
    with torch.no_grad():
        for p in hooks.triplets:
            p.sub_(0.5 * p.grad)
    hooks.on_step_end(progress)
    weights = before if sensitivity == "pre_step" else hooks.triplets
    seen = torch.cat([(w * p.grad).abs().flatten() for w, p in zip(weights, hooks.triplets, strict=True)])
    assert_close(hooks.sensitivity.mean_N, (1 - 0.85) * seen.detach())
    assert_close(hooks.sensitivity.spread_N, (1 - 0.85) * 0.85 * seen.detach())


def test_adalora_warns_where_its_hook_was_never_called():
    injection = inject(lone("linear"), "adalora", target_modules="layer", rank=2)
    with pytest.warns(UserWarning, match="on_step_end was not called"):
        injection.hooks.on_train_end()


@pytest.mark.parametrize("tinit, tfinal", [(5, 5), (0.6, 0.4), (11, 0), (0, 11)])
def test_adalora_refuses_a_schedule_without_a_step(tinit, tfinal):
    injection = inject(lone("linear"), "adalora", target_modules="layer", rank=2, tinit=tinit, tfinal=tfinal)
    with pytest.raises(ValueError, match="tinit"):
        injection.hooks.on_train_begin(10)


# --- deliberate differences --------------------------------------------------------------------------------


def starts(targets):
    torch.manual_seed(0)
    base = Net(*PAIRS_OF_LAYERS["linear"]())
    ours = inject(copy.deepcopy(base), "lora", target_modules=targets).adapters["second"].A_RI
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(target_modules=targets)).base_model.model.second
    return ours, theirs.lora_A["default"].weight


def test_adding_a_target_shifts_peft_s_start_and_not_ours():
    (ours, theirs), (ours_beside, theirs_beside) = starts(["second"]), starts(["first", "second"])
    assert torch.equal(ours, ours_beside)
    assert not torch.equal(theirs, theirs_beside)


def test_peft_reads_the_global_stream_and_we_do_not():
    base = Net(*PAIRS_OF_LAYERS["linear"]())
    before = torch.get_rng_state()
    inject(copy.deepcopy(base), "pissa", target_modules=["first"], init="pissa_niter_4")
    assert torch.equal(torch.get_rng_state(), before)
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["first"]))
    assert not torch.equal(torch.get_rng_state(), before)


def test_disabling_pissa_gives_w_and_peft_gives_the_residual():
    twins = Twins("pissa", lora_config(init_lora_weights="pissa"), same_start=False, rank=4, alpha=6.0)
    x, target = twins.batch()
    expected = twins.ours(x, target).y
    with twins.injection.disabled(), twins.theirs.disable_adapter():
        assert_close(twins.ours(x, target).y, expected, rtol=0, atol=TOLERANCE)
        assert not torch.allclose(twins.theirs.base_model(x, target).y, expected, atol=0.1)


def test_merging_ten_times_in_bfloat16_changes_peft_s_base_and_not_ours():
    base = lone("linear", 64, 64, torch.bfloat16)
    before = base.layer.weight.detach().clone()
    model = copy.deepcopy(base)
    injection = inject(model, "lora", target_modules="layer")
    perturb(injection)
    theirs = peft.get_peft_model(base, peft.LoraConfig(target_modules=["layer"]))
    layer = theirs.base_model.model.layer
    layer.lora_B["default"].weight.data.copy_(injection.adapters["layer"].B_OR)
    for _ in range(10):
        injection.merge()
        injection.unmerge()
        layer.merge()
        layer.unmerge()
    assert torch.equal(model.layer.layer.weight, before)
    assert not torch.equal(layer.base_layer.weight, before)


def test_dropout_with_a_residual_start_is_peft_s_and_warns():
    """Both compute (W - s B0 A0) x + s B A drop(x): the mean over masks is the base, and no pass is."""
    base = Net(*PAIRS_OF_LAYERS["linear"]())
    with pytest.raises(ValueError, match=r"lora_dropout=0\.3"):
        inject(copy.deepcopy(base), "dora", target_modules=["first"], init="pissa", lora_dropout=0.3)
    x, target, ours = torch.randn(6, 14), torch.zeros(6, 8), copy.deepcopy(base)
    expected = base(x, target).y
    with pytest.warns(UserWarning, match="differ from the base at step 0"):
        inject(ours, "pissa", target_modules=["first"], rank=4, lora_dropout=0.3)
    config = lora_config(init_lora_weights="pissa", lora_dropout=0.3, target_modules=["first"])()
    theirs = peft.get_peft_model(copy.deepcopy(base), config).base_model
    torch.testing.assert_close(ours.eval()(x, target).y, expected, rtol=1e-4, atol=1e-5)
    spreads = []
    with torch.no_grad():
        for model in (ours.train(), theirs.train()):
            passes = torch.stack([model(x, target).y for _ in range(400)])
            spreads.append(passes.std(0))
            assert not torch.allclose(passes[0], expected, atol=0.01)
    torch.testing.assert_close(*spreads, rtol=0.35, atol=0.01)


def lora_plus_with_head(**more):
    base = Net(*PAIRS_OF_LAYERS["conv1d"]())
    ours = copy.deepcopy(base)
    injection = inject(
        ours, "lora_plus", target_modules=["first"], modules_to_save=["second"], loraplus_lr_ratio=8.0
    )
    config = peft.LoraConfig(
        target_modules=["first"], modules_to_save=["second"], fan_in_fan_out=True, task_type=None
    )
    theirs = create_loraplus_optimizer(
        peft.get_peft_model(base, config), torch.optim.AdamW, lr=0.1, loraplus_lr_ratio=8.0, **more
    )
    return injection, theirs


def test_lora_plus_groups_are_peft_s_by_name_rate_and_decay():
    twins = Twins("lora_plus", lora_config(), rank=4, alpha=6.0, loraplus_lr_ratio=3.0)
    mine, other = lora_plus_optimisers(twins)
    described = []
    for optimiser, names in (
        (mine, {id(ours): i for i, (ours, _) in enumerate(twins.pairs())}),
        (other, {id(theirs): i for i, (_, theirs) in enumerate(twins.pairs())}),
    ):
        described.append(
            {
                names[id(p)]: (group["lr"], group["weight_decay"])
                for group in optimiser.param_groups
                for p in group["params"]
            }
        )
    assert described[0] == described[1]
    assert sorted(described[0].values()) == [(0.01, 0.1)] * 2 + [(0.03, 0.1)] * 2


def test_lora_plus_leaves_the_head_at_the_plain_rate():
    injection, theirs = lora_plus_with_head()
    rates = {id(p): g["lr"] for g in injection.param_groups(lr=0.1) for p in g["params"]}
    head = injection.model.second
    assert (rates[id(head.weight)], rates[id(head.bias)]) == (0.1, 0.1)
    peft_rates = {g["lr"]: [p.ndim for p in g["params"]] for g in theirs.param_groups if g["params"]}
    assert 1 in peft_rates[0.8] and 1 not in peft_rates[0.1]


def test_lora_plus_respects_weight_decay():
    injection, theirs = lora_plus_with_head(weight_decay=0.1)
    own = injection.param_groups(lr=0.1, weight_decay=0.1)[:2]
    assert [group["weight_decay"] for group in own] == [0.1, 0.1]
    assert {group["weight_decay"] for group in theirs.param_groups} == {0.0}


def test_lora_plus_gives_embeddings_the_rates_of_a_and_b():
    twins = Twins("lora_plus", lora_config(), "embedding", rank=4, alpha=6.0, loraplus_lr_ratio=3.0)
    mine, other = lora_plus_optimisers(twins)
    assert {group["lr"] for group in mine.param_groups} == {0.01, 0.03}
    assert 1e-6 in {group["lr"] for group in other.param_groups if group["params"]}


@pytest.mark.parametrize("init, ratio", [("kaiming", 4.0), ("zero_a", 16.0), ("symmetric", 4.0)])
def test_lora_plus_s_ratio_is_16_for_the_authors_start_alone(init, ratio):
    injection = inject(lone("linear"), "lora_plus", target_modules="layer", rank=4, init=init)
    A, B = injection.param_groups(lr=1.0)
    assert (A["lr"], B["lr"]) == (1.0, ratio)


@pytest.mark.parametrize("kind", ["linear", "embedding", "convolution_2d"])
def test_riemannian_lora_s_steps_are_the_paper_s_on_every_kind_of_layer(kind):
    """Eq. 3-4 for plain descent: A ← A - η (BᵀB + δ)⁻¹ ∂A and B ← B - η ∂B (A Aᵀ + δ)⁻¹, both of the old."""
    model = lone(kind)
    injection = inject(model, "riemannian_lora", target_modules="layer", rank=4, reg=0.3)
    perturb(injection)
    optimizer, adapter = injection.optimizer(torch.optim.SGD, lr=0.1), injection.adapters["layer"]
    model(inputs(kind)).square().sum().backward()
    (A, B), (dA, dB) = [(f(adapter.A_RI), f(adapter.B_OR)) for f in (torch.clone, lambda p: p.grad.clone())]
    one = 0.3 * torch.eye(4, dtype=A.dtype)
    optimizer.step()
    assert_close(adapter.A_RI, A - 0.1 * torch.linalg.solve(B.T @ B + one, dA))
    assert_close(adapter.B_OR, B - 0.1 * torch.linalg.solve(A @ A.T + one, dB.T).T)


def test_riemannian_lora_moves_the_weight_alike_from_factors_of_one_product():
    """C-67: to first order a step's ΔW is the same from (A, B) and (M A, B M⁻¹), as δ and η go to 0."""
    moved = []
    for M in (
        torch.eye(3, dtype=torch.float64),
        torch.tensor([[2.0, 1, 0], [0, 0.5, 3], [1, 0, 1]]).double(),
    ):
        model = lone("linear")
        injection = inject(model, "riemannian_lora", target_modules="layer", rank=3, reg=1e-12)
        perturb(injection)
        adapter = injection.adapters["layer"]
        with torch.no_grad():
            adapter.A_RI.copy_(M @ adapter.A_RI), adapter.B_OR.copy_(adapter.B_OR @ M.inverse())
        before = adapter.update().detach()
        optimizer = injection.optimizer(torch.optim.SGD, lr=1e-6)
        model(inputs("linear")).square().sum().backward()
        optimizer.step()
        moved.append((adapter.update().detach() - before) / 1e-6)
    assert_close(*moved, rtol=1e-4, atol=1e-4)
    assert moved[0].abs().max() > 0.1


def test_lora_fa_projects_before_clipping():
    """What clipping sees is the projected gradient: g pinv(A Aᵀ) / s², so that s B A follows ∂L/∂W."""
    model = lone("linear")
    injection = inject(model, "lora_fa", target_modules="layer", rank=4, alpha=6.0, mode="projected")
    perturb(injection)
    adapter, x = injection.adapters["layer"], inputs("linear")
    W_OI = injection.matrices["layer"].host.matrix().detach().requires_grad_()
    host = injection.matrices["layer"].host
    host.apply(x, W_OI + adapter.update().detach()).square().sum().backward()
    model(x).square().sum().backward()
    injection.hooks.on_after_backward(Progress(1, 1))
    moved_OI = adapter.scale * adapter.B_OR.grad @ adapter.A_RI
    V_IR = torch.linalg.svd(adapter.A_RI, full_matrices=False)[2].T
    assert_close(moved_OI, W_OI.grad @ V_IR @ V_IR.T, rtol=1e-5, atol=1e-5)


def test_adalora_of_equal_ranks_trains_where_peft_crashes():
    config = functools.partial(peft.AdaLoraConfig, init_r=3, target_r=3, total_step=20, **SCHEDULE)
    twins = Twins("adalora", config, rank=3, init_r=3, alpha=12.0, **SCHEDULE)
    optimiser, _ = plain_optimisers(twins)
    for twins.steps in range(1, 21):
        twins.backward()
        optimiser.step()
        twins.injection.hooks.on_step_end(Progress(twins.steps, 20))
        optimiser.zero_grad()
    assert all(a.E_R.all() for a in twins.injection.adapters.values())
    with pytest.raises(RuntimeError):
        twins.theirs.base_model.update_and_allocate(4)


def test_adalora_s_regulariser_stays_out_of_the_loss():
    twins = adalora_twins()
    x, target = twins.batch()
    y = twins.ours(x, target)
    assert_close(y.loss, (y.y - target).square().mean())
    assert twins.theirs.base_model(x, target).loss > y.loss + 0.1


def test_olora_starts_on_conv1d_where_peft_fails():
    base = lone("conv1d", dtype=torch.float32)
    x = inputs("conv1d", dtype=torch.float32)
    model, expected = copy.deepcopy(base), base(x)
    inject(model, "lora", target_modules="layer", rank=4, init="olora")
    assert_close(model(x), expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(RuntimeError):
        config = peft.LoraConfig(
            r=4, target_modules=["layer"], init_lora_weights="olora", fan_in_fan_out=True
        )
        peft.get_peft_model(base, config)(x)


def test_dora_survives_a_zero_row_where_peft_gives_nan():
    base, x = lone("linear", dtype=torch.float32), inputs("linear", dtype=torch.float32)
    with torch.no_grad():
        base.layer.weight[3] = 0
    model, expected = copy.deepcopy(base), base(x)
    inject(model, "dora", target_modules="layer", rank=4)
    assert_close(model(x), expected, rtol=0, atol=TOLERANCE)
    config = peft.LoraConfig(r=4, target_modules=["layer"], use_dora=True)
    assert peft.get_peft_model(base, config)(x)[..., 3].isnan().all()


def table():
    """The parity table in Markdown."""
    lines = ["| variant | outputs | gradients | after ten steps |", "|---|---|---|---|"]
    for case, compare in CASES.items():
        d = compare()
        lines.append(f"| {case} | {d.outputs:.1e} | {d.gradients:.1e} | {d.ten_steps:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("Largest absolute differences from PEFT " + peft.__version__ + ", float32, CPU, AdamW at 1e-2.\n")
    print(table())
