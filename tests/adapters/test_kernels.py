"""The fused kernels against ordinary operations, in both orders of each, and what they keep for backward."""

import contextlib
import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import settings as drive
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lora_zoo.conformance.cases import MATRIX, adapt, firsts, inputs, lone, only, perturb, settings, takes
from lora_zoo.core import dropout
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dropout import SPARSE_UP_TO, DenseMask, SparseMask
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.kernel import KERNELS
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import VARIANTS
from lora_zoo.hosts.linear import LinearHost
from lora_zoo.injection.inject import inject
from lora_zoo.injection.paths import paths
from lora_zoo.kernels import additive, dense, dora, vera
from lora_zoo.kernels.dense import DenseKernel
from lora_zoo.kernels.shared import FactorPair

few = drive(max_examples=25, deadline=None, derandomize=True)
either_order = pytest.mark.parametrize("form", [True, False])
sizes = st.integers(1, 9)


def gradients(output, tensors):
    """The gradients of a loss that weighs every entry differently."""
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), tensors)


def always(monkeypatch, form):
    monkeypatch.setattr(additive, "cheaper_formed", lambda *_, **__: form)


def layer(O, I, bias):
    host = LinearHost(nn.Linear(I, O, bias=bias, dtype=torch.float64).requires_grad_(False))
    return host, host.matrix(), host.layer.bias


def draw(*shape, learns=True):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(learns)


@st.composite
def cases(drawn):
    O, I, N, R = (drawn(sizes) for _ in range(4))
    batch = drawn(st.sampled_from([(N,), (2, N), (1, N, 2)]))
    p = drawn(st.sampled_from([0.0, 0.1, 0.6]))
    return O, I, batch, R, drawn(st.booleans()), drawn(st.booleans()), p


def made(case):
    O, I, batch, R, bias, residual, p = case
    x = draw(*batch, I)
    kind = SparseMask if p <= SPARSE_UP_TO else DenseMask
    mask = kind.draw(x.detach(), p, generator("mask")) if p else None
    start = FactorPair(draw(O, R, learns=False), draw(R, I, learns=False), -1.5) if residual else None
    return layer(O, I, bias), x, FactorPair(draw(O, R), draw(R, I), 0.5), start, mask


@either_order
@given(case=cases())
@few
def test_a_product_is_two_thin_ones(form, case):
    (host, W_OI, bias_O), x, pair, start, mask = made(case)
    with pytest.MonkeyPatch.context() as patch:
        always(patch, form)
        y = additive.product(host, x, pair, start, mask)
        found = gradients(y, (x, *pair[:2]))
    branch = x if mask is None else mask.drop(x)
    expected = F.linear(x, W_OI, bias_O) + branch @ (0.5 * pair.B_OR @ pair.A_RI).T
    if start:
        expected = expected - 1.5 * branch @ (start.B_OR @ start.A_RI).T
    assert_close(y, expected)
    assert_close(found, gradients(expected, (x, *pair[:2])))


@either_order
@given(case=cases())
@few
def test_a_decomposed_product_is_the_normalised_matrix_times_m(form, case):
    (host, W_OI, bias_O), x, pair, start, mask = made(case)
    m_O = draw(len(W_OI))
    with pytest.MonkeyPatch.context() as patch:
        always(patch, form)
        y = dora.decomposed(host, x, m_O, pair, start, mask)
        found = gradients(y, (x, m_O, *pair[:2]))
    V_OI = W_OI + 0.5 * pair.B_OR @ pair.A_RI - (1.5 * start.B_OR @ start.A_RI if start else 0)
    effective_OI = (m_O / V_OI.detach().norm(dim=1))[:, None] * V_OI
    branch = x if mask is None else mask.drop(x)
    expected = F.linear(x, W_OI, bias_O) + F.linear(branch, effective_OI - W_OI)
    assert_close(y, expected)
    assert_close(found, gradients(expected, (x, m_O, *pair[:2])))


@given(case=cases(), tokens=st.sampled_from([1, 3, 400]))
@few
def test_a_scaled_product_is_that_of_the_scaled_factors(case, tokens):
    """Many tokens and a high rank: formed; few: not."""
    O, I, _, R, bias, _, p = case
    (host, W_OI, bias_O), x, pair, _, mask = made((O, I, (tokens,), R, bias, False, p))
    pair = FactorPair(*(t.detach() for t in pair[:2]))
    b_O, d_R = draw(O), draw(R)
    y = vera.scaled(host, x, b_O, d_R, pair, mask)
    branch = x if mask is None else mask.drop(x)
    expected = F.linear(x, W_OI, bias_O) + branch @ pair.A_RI.T @ (b_O[:, None] * pair.B_OR * d_R).T
    assert_close(y, expected)
    assert_close(gradients(y, (x, b_O, d_R)), gradients(expected, (x, b_O, d_R)))


def test_both_orders_are_taken():
    """Few tokens on a large matrix: thin; many on a small one: formed. The cost model decides."""
    assert not additive.cheaper_formed(16, 8, (768, 768), spared=768)
    assert additive.cheaper_formed(1536, 8, (192, 192), spared=192)
    assert additive.cheaper_formed(512, 256, (768, 768), spared=1536)


FUSED = [name for name in MATRIX if VARIANTS[name].kernel]


def spied(monkeypatch):
    """The kernels that are taken from now on."""
    taken = []
    for name, kernel in KERNELS.items():
        run = kernel.run
        monkeypatch.setattr(kernel, "run", lambda *a, run=run, name=name: taken.append(name) or run(*a))
    return taken


@pytest.mark.parametrize("name", FUSED)
def test_whole_dense_layers_take_a_kernel_and_equal_the_plain_definition(name, monkeypatch):
    taken = spied(monkeypatch)
    model, x = lone("linear"), inputs("linear").requires_grad_()
    injection = adapt(model, name)
    perturb(injection)
    adapter, host = only(injection)
    own = [x, *(p for p in adapter.parameters() if p.requires_grad)]
    y, plain = model(x), Adapter.forward(adapter, x, host)
    assert len(taken) == 1
    assert_close(y, plain)
    assert_close(gradients(y, own), gradients(plain, own))


@pytest.mark.parametrize("shape", [(4, 6), (2, 2, 6)])
@pytest.mark.parametrize("name", MATRIX)
def test_a_layer_that_writes_over_the_output_does_no_harm(name, shape):
    """LeakyReLU(inplace=True) after the adapted layer; DoRA's magnitude learns from that output."""
    found, drops = [], {"lora_dropout": 0.4} if "lora_dropout" in hyperparameters(VARIANTS[name]) else {}
    for inplace in (True, False):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.5, inplace=inplace)).double()
        injection = inject(model, name, target_modules=["0"], **{**settings(name, 2), **drops})
        perturb(injection)
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(shape).requires_grad_()
        own = [x, *injection.parameters()]
        found.append([gradients(model.train(mode)(x), own) for mode in (True, False)])
    assert_close(*found)


def other_memory(pair):
    pair.A_RI.data = 2 * pair.A_RI.data


def another_tensor(pair):
    pair.B_OR = -pair.B_OR


def written(pair):
    pair.A_RI.mul_(0.5)


@torch.no_grad()
def test_a_token_sees_the_shared_pair_as_it_is_now():
    """Views of it are kept between calls without gradients, and made anew; a copy has its own."""
    injection, x = adapt(lone("linear", dtype=torch.float32).eval(), "vera"), inputs("linear").float()
    perturb(injection)
    adapter, host = only(injection)
    for change in (written, other_memory, another_tensor, written):
        before = injection.model(x)
        assert adapter.fused._corner is not None
        twin = copy.deepcopy(adapter)
        assert twin.fused._corner is None
        change(adapter.pair)
        after = injection.model(x)
        assert not torch.allclose(after, before)
        assert_close(after, Adapter.forward(adapter, x, host))
        assert_close(twin.output(x, host), before)
    with torch.inference_mode():
        adapter.fused._corner = None
        injection.model(x)
    with torch.enable_grad():
        injection.model(x).sum().backward()
    assert all(p.grad is not None for p in injection.parameters())


def test_a_zero_magnitude_gives_no_nan():
    (host, *_), x, pair, _, _ = made((4, 3, (5,), 2, True, False, 0.0))
    m_O = torch.tensor([0.0, 1.0, -1.0, 1e-320], dtype=torch.float64, requires_grad=True)
    for gradient in gradients(dora.decomposed(host, x, m_O, pair), (x, m_O, *pair[:2])):
        assert gradient.isfinite().all()


def kept_bytes(name, tokens, dtype=torch.float32, *, autocast=False, bias=True, **hyper):
    """Bytes kept for backward beyond the frozen layer's own, the parameters and buffers not counted."""
    model = nn.Sequential(nn.Linear(64, 64, bias=bias, dtype=dtype)).requires_grad_(False)
    injection = inject(model, name, target_modules=["0"], **settings(name, **hyper))
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    x, kept = torch.randn(tokens, 64, dtype=dtype, requires_grad=True), dict[int, int]()

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.sum().backward()
    assert injection.parameters()
    return sum(kept.values())


def test_lora_fa_keeps_r_numbers_a_token_and_lora_the_input():
    tokens = 1024
    lora, lora_fa = kept_bytes("lora", tokens), kept_bytes("lora_fa", tokens)
    assert lora >= tokens * 64 * 4
    assert tokens * 4 * 4 <= lora_fa < tokens * 5 * 4 + 4096
    assert lora_fa < 0.1 * lora


@pytest.mark.parametrize("autocast", [False, True])
def test_a_narrow_input_is_kept_as_it_is_and_no_weight_is_kept_anew(autocast):
    """DoRA without a bias keeps its output besides, with one that of V; dropout a mask of few positions."""
    tokens, dtype = 4096, torch.float32 if autocast else torch.bfloat16
    kept = functools.partial(kept_bytes, tokens=tokens, dtype=dtype, autocast=autocast)
    thin, narrow = 8192 + tokens * 4 * 4, tokens * 64 * 2
    assert narrow <= kept("lora") <= narrow + thin
    assert narrow < kept("lora", lora_dropout=0.05) < 1.4 * narrow
    assert tokens * 4 * 2 <= kept("lora_fa") <= tokens * 4 * 4 + thin
    for bias in (True, False):
        assert 2 * narrow <= kept("dora", bias=bias) <= 2 * narrow + thin


# --- dtypes ------------------------------------------------------------------------------------------------

NARROW, WIDE, HALF = torch.bfloat16, torch.float32, [torch.bfloat16, torch.float16]
TOKENS, OUT, IN = 640, 48, 64
WAYS = [
    {},
    {"bias": False},
    {"lora_dropout": 0.1},
    {"lora_dropout": 0.5, "bias": False},
    {"init": "pissa"},
    {"rank": 48},
    {"rank": 48, "lora_dropout": 0.1},
]


def narrow(name, dtype, *, bias=True, size=0.05, **more):
    """A layer in `dtype` and its adapter away from its start; all dtypes hold the layer's numbers.

    The branch is in float32 where `more` does not say otherwise, whatever the device multiplies.
    """
    more = {"branch_dtype": WIDE} | more
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(IN, OUT, bias=bias, dtype=NARROW)).requires_grad_(False).to(dtype)
    branch_dtype = more.pop("branch_dtype")
    injection = inject(model, name, target_modules=["0"], branch_dtype=branch_dtype, **settings(name, **more))
    perturb(injection, size)
    return model.train(), injection


WHOLE = firsts(lambda cls: cls.kernel, FUSED)


@functools.cache
def allowed(name):
    """The ways that a variant takes, of the first one of each kernel; of others, with their operands, two."""
    found = []
    for more in WAYS if name in WHOLE else ({}, {"lora_dropout": 0.1}):
        with contextlib.suppress(ValueError):
            _, injection = narrow(name, WIDE, **more)
            if all(adapter.fused for adapter in injection.adapters.values()):
                found.append(more)
    return found


every_kernel = pytest.mark.parametrize("name", FUSED)


def test_every_kernel_is_taken_in_some_way():
    assert all(allowed(name) for name in WHOLE)
    assert all(any(more.get("lora_dropout") for more in allowed(name)) for name in WHOLE)


def passed(model, injection, dtype, *, autocast=False, within=False):
    """The output, then the gradients of the input and the adapter, of one and the same pass."""
    injection.counter.counts = dict.fromkeys(injection.counter.counts, 3)
    x = torch.randn(TOKENS, IN, generator=generator("x")).to(NARROW).to(dtype).requires_grad_()
    g = torch.randn(TOKENS, OUT, generator=generator("g")).to(NARROW)
    with torch.autocast("cpu", NARROW, enabled=autocast):
        y = model(x)
    with torch.autocast("cpu", NARROW, enabled=within):
        return [y, *torch.autograd.grad(y, [x, *injection.parameters()], g.to(y.dtype))]


def compared(name, dtype, monkeypatch, *, autocast=False, **more):
    """The errors of the kernel and of ordinary operations, beside the same pass in double precision."""
    model, injection = narrow(name, dtype, **more)
    with monkeypatch.context() as patch:
        taken = spied(patch)
        fused = passed(model, injection, dtype, autocast=autocast)
        assert len(taken) == 1
        patch.setattr(DenseKernel, "refusal", lambda *_: "a test")
        ordinary = passed(model, injection, dtype, autocast=autocast)
    with monkeypatch.context() as patch:
        patch.setattr(DenseKernel, "refusal", lambda *_: "a test")
        exact = [t.detach() for t in passed(model.double(), injection, torch.float64)]
    assert [t.dtype for t in fused] == [t.dtype for t in ordinary]
    return [
        tuple(float((t.detach().double() - e).norm() / e.norm()) for t in both)
        for *both, e in zip(fused, ordinary, exact, strict=True)
    ]


def in_ways(name, *values):
    """Each way with each of the `values` for the first variant of a kernel, with one by turns for others."""
    every = list(itertools.product(*values))
    for number, more in enumerate(allowed(name)):
        for value in every if name in WHOLE else [every[number % len(every)]]:
            yield more, *value


@every_kernel
def test_on_a_narrow_base_a_kernel_is_as_exact_as_ordinary_operations(name, monkeypatch):
    for more, dtype in in_ways(name, HALF):
        for fused, ordinary in compared(name, dtype, monkeypatch, **more):
            assert fused <= 1.02 * ordinary + 1e-6, (more, dtype)


@every_kernel
def test_under_autocast_a_kernel_is_about_as_exact_as_ordinary_operations(name, monkeypatch):
    """The two parts of the input's gradient are summed in the narrow dtype: one rounding more there."""
    for more, dtype in in_ways(name, [NARROW, WIDE]):
        output, of_input, *of_tensors = compared(name, dtype, monkeypatch, autocast=True, **more)
        assert 1e-4 < of_input[0] <= 2**0.5 * of_input[1], (more, dtype)
        for fused, ordinary in (output, *of_tensors):
            assert 1e-4 < fused <= 1.15 * ordinary, (more, dtype)


@every_kernel
def test_a_backward_pass_has_the_dtypes_of_its_forward_pass(name):
    """Whether it is called under autocast or not."""
    for more, dtype, autocast in in_ways(name, (NARROW, WIDE), (False, True)):
        model, injection = narrow(name, dtype, **more)
        found = [passed(model, injection, dtype, autocast=autocast, within=w) for w in (False, True)]
        for outside, within in zip(*found, strict=True):
            assert torch.equal(outside, within), (more, dtype, autocast)


@pytest.mark.parametrize("name", ["lora", "lora_fa"])
@pytest.mark.parametrize("dtype", HALF)
def test_a_residual_start_is_no_change_in_a_narrow_dtype(name, dtype):
    model, injection = narrow(name, dtype, size=0.0, init="pissa", rank=16)
    x = torch.randn(TOKENS, IN).to(dtype)
    got = model(x)
    with injection.disabled():
        assert_close(got, model(x), rtol=0, atol=1e-5)


U = 2.0**-8
"""The largest relative error of rounding to bfloat16."""


def test_a_branch_in_bfloat16_errs_within_its_bound_of_every_entry():
    """That of `narrowed`, beside the same numbers in float64; a second order in u is 1 % of it."""
    model, injection = narrow("lora", NARROW, rank=8, alpha=24, branch_dtype=NARROW)
    adapter, host = only(injection)
    y, dx, *of_factors = (t.detach().double() for t in passed(model, injection, NARROW))
    gradients_of = dict(zip(injection.named_parameters(), of_factors, strict=True))
    dA, dB = (next(g for n, g in gradients_of.items() if n.endswith(end)) for end in ("A_RI", "B_OR"))
    assert adapter.A_RI.dtype == WIDE
    x = torch.randn(TOKENS, IN, generator=generator("x")).to(NARROW).double()
    g = torch.randn(TOKENS, OUT, generator=generator("g")).to(NARROW).double()
    W, bias, A, B = (t.detach().double() for t in (host.matrix(), host.own_bias, adapter.A_RI, adapter.B_OR))
    B = 3 * B
    size = [t.abs() for t in (x, g, W, A, B)]
    x_, g_, W_, A_, B_ = size
    checks = [
        (dA, (g @ B).T @ x, 3 * (g_ @ B_).T @ x_),
        (dB, 3 * g.T @ (x @ A.T), 3 * 3 * g_.T @ (x_ @ A_.T)),
        (y, x @ W.T + bias + x @ A.T @ B.T, 2 * (x_ @ W_.T + bias.abs()) + 4 * x_ @ A_.T @ B_.T),
        (dx, g @ W + g @ B @ A, 2 * g_ @ W_ + 4 * g_ @ B_ @ A_),
    ]
    for got, exact, bound in checks:
        errors = (got - exact).abs()
        assert bool((errors <= 1.01 * U * bound).all())
        assert U / 8 < float(errors.norm() / exact.norm()) < U, "roundings of either sign cancel"


def in_depth(name, dtype, branch_dtype=None):
    """The gradients of three adapted layers in a row, one vector for each tensor."""
    torch.manual_seed(5)
    layers = [nn.Linear(IN, IN, dtype=NARROW) for _ in range(3)]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).requires_grad_(False)
    named = {"target_modules": ["0", "2", "4"], "branch_dtype": branch_dtype}
    injection = inject(model.to(dtype), name, **named, **settings(name))
    perturb(injection, 0.05)
    if dtype == torch.float64:
        model.double()
    x = torch.randn(TOKENS, IN, generator=generator("x")).to(NARROW).to(dtype)
    y = model(x)
    g = torch.randn(y.shape, generator=generator("g")).to(NARROW).to(dtype)
    return torch.autograd.grad(y, injection.parameters(), g)


@pytest.mark.parametrize("name", ["lora", "dora", "vera"])
def test_a_branch_in_bfloat16_keeps_gradients_within_the_base_s_own_error(name):
    """What a bfloat16 base rounds of x and g errs as much as the branch: both are at most √3 of one."""
    exact = in_depth(name, torch.float64)
    wide, narrow_ = (in_depth(name, NARROW, dtype) for dtype in (WIDE, NARROW))
    for e, w, n in zip(exact, wide, narrow_, strict=True):
        of_base, of_branch = (float((t.double() - e).norm() / e.norm()) for t in (w, n))
        assert n.dtype == WIDE and of_branch > 2**-11
        assert of_branch <= 3**0.5 * max(of_base, U / 2) < 4 * U, (of_base, of_branch)


def test_the_branch_is_in_the_dtype_that_is_asked_for_or_that_the_device_multiplies(monkeypatch):
    found = {}
    for asked in ("float32", NARROW, None):
        model, injection = narrow("lora", NARROW, branch_dtype=asked)
        for fast in (False, True):
            monkeypatch.setattr(dense, "multiplies_bfloat16", lambda device, fast=fast: fast)
            found[asked, fast] = torch.cat([t.flatten() for t in passed(model, injection, NARROW)])
    wide, narrow_ = found["float32", False], found[NARROW, True]
    assert not torch.equal(wide, narrow_)
    assert torch.equal(found["float32", True], wide) and torch.equal(found[None, False], wide)
    assert torch.equal(found[NARROW, False], narrow_) and torch.equal(found[None, True], narrow_)
    with pytest.raises(ValueError, match="branch_dtype 'float16'"):
        narrow("lora", NARROW, branch_dtype="float16")


def test_a_residual_start_is_not_multiplied_in_bfloat16():
    """The change of it, which is learned, would be rounded by what the start has."""
    wide, narrow_ = (narrow("lora", NARROW, init="pissa", branch_dtype=dtype) for dtype in (WIDE, NARROW))
    for one, other in zip(passed(*wide, NARROW), passed(*narrow_, NARROW), strict=True):
        assert torch.equal(one, other)


def test_double_precision_stays_as_it_is_under_autocast():
    model, injection = narrow("lora", torch.float64)
    outside, within = (passed(model, injection, torch.float64, autocast=on) for on in (False, True))
    for one, other in zip(outside, within, strict=True):
        assert other.dtype == torch.float64
        assert_close(one, other)


@pytest.mark.parametrize("change", [lambda p: p.bfloat16(), lambda p: p.double()])
def test_an_adapter_of_any_one_dtype_gives_the_same(change):
    """A narrower one than its base is left to ordinary operations, a wider one is not."""
    model, injection = narrow("lora", WIDE)
    expected = passed(model, injection, WIDE)
    for p in injection.parameters():
        p.data = change(p.data)
    for got, before in zip(passed(model, injection, WIDE), expected, strict=True):
        assert_close(got.float(), before, rtol=3e-2, atol=3e-2 * float(before.abs().max()))


# --- masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, p",
    [(SparseMask, 0.001), (SparseMask, 0.05), (SparseMask, 0.125), (DenseMask, 0.05), (DenseMask, 0.3)],
)
def test_a_mask_drops_each_entry_with_probability_p_and_apart_from_the_others(kind, p):
    x = torch.ones(400, 1000, dtype=torch.float64)
    dropped = kind.draw(x, p, generator("draw", p)).drop(x) == 0
    n = x.numel()
    for share in (
        dropped.double().mean(),
        dropped[::2].double().mean(),
        dropped[:, :100].double().mean(),
        dropped[:, -1].double().mean(),
    ):
        assert abs(float(share) - p) < 5 * (p / 400) ** 0.5
    assert abs(int(dropped.sum()) - n * p) < 5 * (n * p) ** 0.5
    together = (dropped[:, 1:] & dropped[:, :-1]).double().mean()
    assert abs(float(together) - p * p) < 5 * p / n**0.5


@pytest.mark.parametrize("kind", [SparseMask, DenseMask])
def test_a_mask_is_the_same_in_place_differentiable_and_for_any_shape(kind):
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    mask = kind.draw(x, 0.4, generator("mask"))
    y = mask.drop(x)
    assert_close(y, torch.where(y == 0, 0, x / 0.6), rtol=1e-4, atol=0)
    assert 0.2 < float((y == 0).double().mean()) < 0.6
    assert torch.equal(mask.drop(x.clone().requires_grad_()), y)
    assert torch.equal(mask.drop_(x.clone()), y)
    assert torch.equal(mask.drop(x.view(15, 7)), y.view(15, 7))
    learning = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mask.drop(learning).sum(), learning)
    assert torch.equal(gradient, mask.drop(torch.ones_like(x)))


def test_a_draw_that_falls_short_goes_on(monkeypatch):
    x = torch.ones(100_000)
    monkeypatch.setattr(dropout, "SPARE", -60)  # a seventh of what is needed
    dropped = SparseMask.draw(x, 0.05, generator("short")).drop(x) == 0
    for part in dropped.split(20_000):
        assert abs(float(part.double().mean()) - 0.05) < 0.01


# --- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRIX)
def test_the_path_of_each_adapter_can_be_asked(name):
    """On a whole dense layer a variant with a kernel is fused; hooks and other layers are reasons."""
    injection, x = adapt(lone("linear"), name), inputs("linear")
    adapter, _ = only(injection)
    assert paths(injection, x) == {"layer": "fused" if adapter.kernel else "plain: there is no kernel"}
    if adapter.kernel:
        handle = adapter.register_forward_hook(lambda *_: None)
        assert paths(injection, x) == {"layer": "plain: the adapter has hooks"}
        handle.remove()
    if adapter.kernel and takes(name, "embedding"):
        other = adapt(lone("embedding"), name)
        assert paths(other, inputs("embedding")) == {"layer": "plain: a layer of type embedding is not dense"}
    assert "output" not in vars(adapter)


def test_a_hook_on_an_adapter_is_called():
    injection, x, seen = adapt(lone("linear"), "lora"), inputs("linear"), []
    expected = injection.model(x)
    only(injection)[0].register_forward_hook(lambda module, given, y: seen.append(y))
    assert torch.allclose(injection.model(x), expected, atol=1e-6) and len(seen) == 1
