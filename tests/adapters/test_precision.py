"""The dtype and device rules (listed in shells.py), and torch's own tools on every variant.

Parametrised over the registry: no variant is named here, and a new file under `variants/` is tested as it is.
"""

import copy
import io
import pickle
import typing

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lora_zoo.conformance.cases import (
    EVERYWHERE,
    MATRIX,
    MODELS,
    POINTWISE,
    WHOLE,
    adapt,
    bases,
    batch,
    few_cases,
    firsts,
    fresh,
    in_a_loop,
    inputs,
    logits,
    lone,
    merge,
    mergeable,
    on_models,
    only,
    perturb,
    randomise,
    readable,
    representatives,
    seen,
    settings,
    takes,
    train,
    with_turns,
)
from lora_zoo.core.adapter import Adapter
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.inject import inject
from lora_zoo.kernels import dense as kernels
from lora_zoo.variants.low_rank import LowRank

EXACT = {"rtol": 0, "atol": 0}
HALF, NARROW = [torch.bfloat16, torch.float16], torch.bfloat16
SOME = [*EVERYWHERE, "fused_by_head"]
every_variant = pytest.mark.parametrize("name", MATRIX)
every_pair = in_a_loop("name, kind", mergeable(few_cases()))
pointwise_pairs = in_a_loop("name, kind", mergeable(few_cases(POINTWISE)))
SOME_PAIRS = [pair for pair in few_cases() if pair[1] in SOME]
DISTINCT = {*representatives(), *firsts(lambda cls: cls.hooks, VARIANTS), *WHOLE}
ON_MODELS = [(name, kind) for name, kind in on_models(MODELS) if name in DISTINCT]
"""The first variant of each kind of hooks and of each way to meet a layer, and those without a matrix."""
pytestmark = pytest.mark.filterwarnings("ignore:.*tied.*", "ignore:There is a performance drop")


def autocast():
    return torch.autocast("cpu", NARROW)


def adapted(name, kind, dtype=torch.float32, **more):
    """(model, injection, x) with every trainable tensor moved away from its start."""
    model = lone(kind, dtype=dtype)
    injection = adapt(model, name, **more)
    perturb(injection)
    return model, injection, inputs(kind, dtype=dtype)


def whole(name, kind, **more):
    """A tiny transformer in evaluation mode with every trainable tensor moved away from its start."""
    model, where = fresh(kind)
    injection = inject(model, name, **where, **settings(name, 2, **more))
    perturb(injection, 0.1)
    return model, injection


def dropped(make, *args):
    """`make` with dropout in the adapter's branch, or without where the variant or its start refuses it."""
    try:
        return make(*args, lora_dropout=0.4)
    except ValueError as refusal:
        assert "lora_dropout" in str(refusal)
        return make(*args)


def duplicate(model):
    """A deep copy of a `lone` model; what says how to call its layer is shared."""
    return copy.deepcopy(model, {id(model.kind): model.kind})


def loss_of(y):
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    return ((y.double() - weights) ** 2).mean()


def gradients(loss, injection):
    return torch.autograd.grad(loss, injection.parameters(), allow_unused=True)


def distance(got, expected):
    """Relative, as the norms of the differences of all tensors together."""
    parts = [(a.detach().double() - b.detach().double()).norm() for a, b in zip(got, expected, strict=True)]
    return float(
        torch.stack(parts).norm() / torch.stack([b.detach().double().norm() for b in expected]).norm()
    )


# --- dtypes ------------------------------------------------------------------------------------------------


@every_pair
def test_adapters_are_float32_or_wider_and_the_layer_keeps_its_dtype(name, kind):
    for dtype in (*HALF, torch.float32, torch.float64):
        keeps_its_dtype(name, kind, dtype)


def keeps_its_dtype(name, kind, dtype):
    plain, (model, injection, x) = lone(kind, dtype=dtype), adapted(name, kind, dtype)
    own = torch.float64 if dtype is torch.float64 else torch.float32
    assert {p.dtype for p in only(injection)[0].parameters()} == {own}
    train(injection, lambda: loss_of(model(x)), steps=1, total=10)
    assert {p.dtype for p in only(injection)[0].parameters()} == {own}
    assert only(injection)[1].tensor().dtype == readable(model, injection).dtype == dtype
    assert model(x).dtype == plain(x).dtype == dtype


@every_pair
def test_under_autocast_the_output_has_the_frozen_layer_s_dtype(name, kind):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        has_the_frozen_layer_s_dtype(name, kind, dtype)


def has_the_frozen_layer_s_dtype(name, kind, dtype):
    plain, (model, _, x) = lone(kind, dtype=dtype), adapted(name, kind, dtype)
    with autocast():
        assert model(x).dtype == plain(x).dtype
    perturb(inject(model, name, target_modules=[model.target], name="other", **settings(name, 2)))
    adapters_of(model).activate("default", "other")
    with autocast():
        assert model(x).dtype == plain(x).dtype
    assert model(x).dtype == plain(x).dtype


@every_pair
def test_autocast_moves_loss_and_gradients_by_rounding_alone(name, kind):
    model, injection, x = adapted(name, kind)
    before = [p.dtype for p in model.parameters()]
    loss = loss_of(model(x))
    exact = gradients(loss, injection)
    with autocast():
        narrow = loss_of(model(x))
    got = gradients(narrow, injection)
    assert abs(float(narrow / loss) - 1) < 2e-2
    assert distance(got, exact) < 1e-1  # of a bfloat16 convolution some processors round off more
    assert [g.dtype for g in got] == [p.dtype for p in injection.parameters()]
    assert [p.dtype for p in model.parameters()] == before


@pointwise_pairs
def test_the_effective_weight_is_not_less_exact_under_autocast(name, kind):
    model, injection, _ = adapted(name, kind)
    expected, penalty = seen(model).detach().clone(), injection.hooks.regularizer()
    with autocast():
        assert_close(seen(model).detach(), expected, **EXACT)
        assert_close(injection.hooks.regularizer(), penalty, **EXACT)
        injection.merge()
    assert_close(seen(model).detach(), expected, **EXACT)


@every_variant
def test_a_narrow_base_rounds_each_output_for_itself(name, monkeypatch):
    """No output feature is scaled as a whole: over many tokens the noise averages out.

    A branch in bfloat16, which some devices multiply, has its factors rounded, and promises less. Where ΔW
    is made as one matrix, each of its entries is rounded once, to 8 bits.
    """
    monkeypatch.setattr(kernels, "multiplies_bfloat16", lambda device: False)
    dense = VARIANTS[name].forward in (Adapter.forward, LowRank.forward)
    model, _, _ = adapted(name, "linear", torch.bfloat16)
    x = inputs("linear", dtype=torch.bfloat16, batch=(2048,))
    got, expected = model(x).double(), duplicate(model).double()(x.double())
    scale = (got * expected).sum(0) / expected.square().sum(0) - 1
    assert distance([got], [expected]) > 1e-3, "nothing is rounded"
    assert float(scale.detach().square().mean().sqrt()) < (1e-3 if dense else 5e-4)


class WeightProducts(TorchDispatchMode):
    """The dtypes of all matrix products of a given shape, as they are computed in the end."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.dtypes = shape, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name()
        if name.startswith(("aten::mm", "aten::bmm", "aten::addmm")) and result.shape == self.shape:
            self.dtypes.add(result.dtype)
        return result


@in_a_loop(
    "name, kind",
    [(n, kind) for n in MATRIX for kind in ("linear", "embedding", "fused_by_head") if takes(n, kind)],
)
def test_what_a_forward_computes_from_weights_alone_is_never_cast(name, kind):
    """Norms of the effective weight, for one: no input has as many vectors as the layer has outputs."""
    model, injection, x = adapted(name, kind)
    with autocast(), WeightProducts(only(injection)[1].matrix().shape) as products:
        model(x)
    assert products.dtypes <= {torch.float32}


class Stated(Adapter):
    """A variant that says nothing but what its weight is."""

    name, paper, equation, count = "stated", "-", "W' = W + B A", "R * (O + I)"

    def __init__(self, context, *, rank: int = 4):
        super().__init__(context)
        O, I = context.shape
        self.A_RI, self.B_OR = nn.Parameter(torch.ones(rank, I)), nn.Parameter(torch.ones(O, rank))

    def weight(self, W_OI):
        return W_OI + self.B_OR @ self.A_RI


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_a_variant_need_not_know_of_autocast(kind):
    model, x = lone(kind, dtype=torch.float32), inputs(kind, dtype=torch.float32)
    injection = inject(model, Stated, target_modules=[model.target])
    perturb(injection)
    with autocast(), WeightProducts(only(injection)[1].matrix().shape) as products:
        model(x)
    assert products.dtypes == {torch.float32}


# --- gradient checkpointing --------------------------------------------------------------------------------


def trained(model, injection, kind, seed=5):
    """(loss, gradients by name) of a pass in training mode, on the global stream from `seed`."""
    torch.manual_seed(seed)
    loss = model(**batch(kind)).loss
    (loss + injection.hooks.regularizer()).backward()
    found = {n: p.grad.clone() for n, p in injection.named_parameters().items() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), found


@pytest.mark.parametrize(("name", "kind", "reentrant"), with_turns(ON_MODELS, [False, True]))
def test_checkpointing_a_model_changes_nothing(name, kind, reentrant):
    model, injection = dropped(whole, name, kind)
    if not injection.parameters():
        return
    model.train()
    count, start = [0], injection.counter.counts
    for adapter in [*injection.adapters.values()][:1]:  # a kernel computes it without a call of the module
        output = adapter.output
        adapter.output = lambda *given, _of=output: count.append(count.pop() + 1) or _of(*given)
    loss, expected = trained(model, injection, kind)
    injection.counter.counts = start
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    if VARIANTS[name].not_recomputable or (reentrant and injection.counter.emitted):
        with pytest.raises(ValueError, match=r"use trainer\.gradient_checkpointing=false"):
            trained(model, injection, kind)
        return
    again, got = trained(model, injection, kind)
    assert_close(again, loss, **EXACT)
    assert got.keys() == expected.keys()
    for n, gradient in expected.items():
        assert_close(got[n], gradient, rtol=1e-5, atol=1e-7)
    assert count == [3 if injection.adapters else 0], "nothing was recomputed"


@in_a_loop("name, kind, reentrant", with_turns(few_cases(), [False, True]))
def test_checkpointing_a_layer_changes_nothing(name, kind, reentrant):
    model, injection, x = dropped(adapted, name, kind)
    model.train()
    if x.is_floating_point():
        x.requires_grad_()
    elif reentrant:
        pytest.skip("torch's reentrant checkpoint needs an input that requires a gradient")
    found = []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        injection.counter.counts = dict.fromkeys(injection.counter.counts, 6)
        with autocast():
            loss = loss_of(call(x))
        loss.backward()
        counts = injection.counter.counts  # a method's own sites wait for its steps
        assert {counts[site] for site in injection.adapters if site in counts} <= {6 + x.is_floating_point()}
        found.append([loss.detach(), *(p.grad for p in injection.parameters())])
        model.zero_grad()
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, **EXACT)


# --- torch.compile -----------------------------------------------------------------------------------------


class Outer(nn.Module):
    """The adapted model as a part of a greater one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return 2 * self.model(x)


def compiled_cases():
    """Each representative, and what acts within a pass by its hooks, with one of the layers by turns."""
    kinds = ["convolution_2d_grouped_strided", "fused_by_head", "attention"]
    within = [name for name in firsts(lambda cls: cls.hooks, MATRIX) if VARIANTS[name].hooks.not_packable()]
    names = sorted({*representatives(), *within})
    fit = [(name, [kind for kind in kinds if takes(name, kind)]) for name in names]
    return [(name, fitting[number % len(fitting)]) for number, (name, fitting) in enumerate(fit) if fitting]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def passes(call, injection, x, steps):
    found = []
    for _ in range(steps):
        y = call(x)
        found += [y.detach(), *gradients(loss_of(y), injection)]
    return found


@pytest.mark.compile
@pytest.mark.parametrize(("name", "kind"), compiled_cases())
def test_a_compiled_model_is_one_graph_and_the_same(name, kind, fresh_compiler):
    """Whole (`fullgraph` refuses a break), once for all passes; a base's in evaluation under autocast, too.

    The graph of the backward pass is traced below, with dropout.
    """
    whole, backend = name in bases(), "eager"
    model, injection, x = adapted(name, kind)
    plain = Outer(model.train())
    compiled = torch.compile(plain, backend=backend, fullgraph=True)
    # The parts of a fused layer are one kernel's call in eager mode alone.
    near = {"rtol": 1e-4, "atol": 1e-5} if kind == "fused_by_head" else EXACT
    for got, expected in zip(*(passes(f, injection, x, 2) for f in (compiled, plain)), strict=True):
        assert_close(got, expected, **near)
    if whole:
        torch._dynamo.reset()
        plain.eval()
        with autocast():
            near = {"rtol": 0.05, "atol": 0.05} if near is not EXACT else EXACT
            assert_close(compiled(x), plain(x), **near)


@pytest.mark.compile
@pytest.mark.parametrize("name", firsts(lambda cls: cls.kernel, bases())[:2])
def test_compiled_dropout_has_the_same_masks_and_compiles_once(name, fresh_compiler):
    """Masks are drawn outside of kernels, which are for eager mode: two of these show it."""
    found = []
    for compiled in (True, False):
        model, injection, x = dropped(adapted, name, "linear")
        call = Outer(model.train())
        found.append(passes(torch.compile(call, backend="aot_eager") if compiled else call, injection, x, 12))
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, rtol=1e-4, atol=1e-5)  # kernels are for eager mode
    assert 0 < counters["stats"]["unique_graphs"] < 10


@pytest.mark.compile
def test_a_compiled_transformer_is_one_graph_and_the_same(fresh_compiler):
    model, injection = whole(MATRIX[0], "llama")
    ids, found = batch("llama")["input_ids"], []
    for call in (torch.compile(model.train(), backend="aot_eager", fullgraph=True), model):
        y = call(input_ids=ids, use_cache=False).logits
        found.append([y.detach(), *gradients(loss_of(y), injection)])
    for got, expected in zip(*found, strict=True):  # some processors round a decomposed operation differently
        assert_close(got, expected, rtol=1e-4, atol=1e-6)


def can_compile():
    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


class Two(nn.Module):
    """A layer that is called and one that is read."""

    def __init__(self):
        super().__init__()
        self.linear, self.attention = (lone(kind, dtype=torch.float32) for kind in ("linear", "attention"))

    def forward(self, x):
        return torch.cat([self.linear(x), self.attention(x)], dim=-1)


@pytest.mark.compile
@pytest.mark.skipif(not can_compile(), reason="torch's inductor needs a C++ compiler")
def test_inductor_gives_the_same(fresh_compiler):
    model, x = Two().train(), inputs("linear", dtype=torch.float32)
    targets = [f"{at}.{getattr(model, at).target}" for at in ("linear", "attention")]
    injection = adapt(model, "lora", targets=targets)
    assert len(injection) == 2
    perturb(injection)
    compiled = torch.compile(model, fullgraph=True)
    for got, expected in zip(*(passes(f, injection, x, 1) for f in (compiled, model)), strict=True):
        assert_close(got, expected, rtol=1e-4, atol=1e-5)


# --- moving, copying and storing a model -------------------------------------------------------------------


@every_pair
def test_an_adapted_layer_can_be_cast(name, kind):
    for dtype in (*HALF, torch.float64):
        can_be_cast(name, kind, dtype)


def can_be_cast(name, kind, dtype):
    model, injection, x = adapted(name, kind)
    x = x.to(dtype) if x.is_floating_point() else x
    rounded = duplicate(model).to(dtype).float()  # a tensor that is rounded may choose otherwise
    expected = rounded(x.float() if x.is_floating_point() else x).detach()
    model.to(dtype)
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    assert {t.dtype for t in floating} == {dtype}
    assert model(x).dtype == readable(model, injection).dtype == dtype
    assert distance([model(x)], [expected]) < (1e-6 if dtype is torch.float64 else 3e-2)
    if dtype is not torch.float16:  # AdamW's eps is 0 there
        train(injection, lambda: loss_of(model(x)), steps=4, total=4)
        assert all(p.isfinite().all() and p.dtype == dtype for p in injection.parameters())
    after = model(x)
    merge(injection)
    injection.remove()
    assert model(x).dtype == dtype
    after = after if injection.variant.pointwise else lone(kind, dtype=torch.float32).to(dtype)(x)
    assert distance([model(x)], [after]) < (1e-12 if dtype is torch.float64 else 3e-2)


@every_pair
def test_an_adapted_layer_can_change_its_device(name, kind):
    """To torch's `meta` device, which needs no accelerator to tell a tensor left behind."""
    model, injection, x = adapted(name, kind)
    model.to("meta")
    injection.hooks.on_train_begin(10)
    assert {t.device.type for t in injection.hooks.buffers()} <= {"meta"}
    assert model(x.to("meta")).device.type == readable(model, injection).device.type == "meta"
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    merge(injection)
    injection.remove()
    assert model(x.to("meta")).device.type == "meta"


@every_pair
def test_adapters_come_back_to_the_device_of_their_layer(name, kind):
    """While merged they are out of the model, which may be moved."""
    model, _, x = adapted(name, kind)
    wrapper = next(iter(adapters_of(model)._wrappers.values()))
    wrapper.uninstall(model)
    model.to("meta")
    wrapper.install(model)
    assert model(x.to("meta")).device.type == "meta"
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.parametrize(("name", "kind", "merged"), with_turns(ON_MODELS, [False, True]))
def test_what_is_out_of_the_model_follows_when_it_is_cast(name, kind, merged):
    """The parameters behind those that train in full, and those behind merged ones."""
    expected = logits(fresh(kind)[0].double(), kind)
    model, injection = whole(name, kind)
    if merged:
        merge(injection)
    model.double()
    adapters_of(model).unmerge()
    with injection.disabled():
        assert torch.equal(logits(model, kind), expected)
    assert {p.dtype for p in base_parameters(model).values()} == {torch.float64}
    assert torch.equal(logits(injection.remove(), kind), expected)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_file(model):
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)


def addresses(tensors):
    return {t.data_ptr() for t in tensors}


@pytest.mark.parametrize(("name", "kind", "copied"), with_turns(ON_MODELS, [copy.deepcopy, by_file]))
def test_a_copied_model_has_adapters_of_its_own(name, kind, copied):
    model, injection = dropped(whole, name, kind)
    expected = logits(model, kind)
    other = copied(model)
    (own,) = adapters_of(other).values()
    assert own.model is other and own is not injection
    assert torch.equal(logits(other, kind), expected)
    assert not addresses(other.parameters()) & addresses(model.parameters())
    assert {id(p) for p in own.parameters()} == {id(p) for p in other.parameters() if p.requires_grad}
    other.train()
    if own.parameters():
        train(own, lambda: other(**batch(kind)).loss, steps=2)
        assert not torch.equal(logits(other.eval(), kind), expected)
    assert not any(injection.counter.counts.values()) and all(own.counter.counts.values())
    merge(own)
    own.unmerge()
    assert torch.equal(logits(own.remove().eval(), kind), logits(fresh(kind)[0], kind))
    assert not other._forward_pre_hooks
    assert torch.equal(logits(model, kind), expected)
    injection.remove()


@in_a_loop("name, kind, first, merged", with_turns(SOME_PAIRS, ["copy", "original"], [False, True]))
def test_a_layer_and_its_deep_copy_do_not_touch_each_other(name, kind, first, merged):
    model, injection, x = adapted(name, kind)
    before, expected = lone(kind, dtype=torch.float32)(x), model(x)
    if merged:
        merge(injection)
    other = duplicate(model)
    (own,) = adapters_of(other).values()
    one, rest = ((other, own), (model, injection))[:: 1 if first == "copy" else -1]
    one[1].unmerge()
    one[1].remove()
    assert_close(one[0](x), before)
    rest[1].unmerge()
    assert_close(rest[0](x), expected, **EXACT)
    perturb(inject(one[0], name, target_modules=[one[0].target], name="other", **settings(name)))
    assert_close(rest[0](x), expected, **EXACT)
    rest[1].remove()
    assert_close(rest[0](x), before)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_can_be_pickled_with_any_choice(name):
    for key, parameter in hyperparameters(VARIANTS[name]).items():
        for choice in typing.get_args(parameter.annotation):
            if isinstance(choice, str):
                model, _ = whole(name, "bert", **{key: choice})
                assert torch.equal(logits(by_pickle(model), "bert"), logits(model, "bert"))


def test_torch_does_not_pickle_a_parametrised_module():
    """Adapted stacked experts and torch's own attention: `save_adapter` is the way, or merging."""
    model, injection, _ = adapted(MATRIX[0], "attention")
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(model.holder)
    injection.merge()
    injection.remove()
    pickle.dumps(model.holder)


# --- torch.func, inference and modes -----------------------------------------------------------------------


@in_a_loop("name, kind, training", with_turns(SOME_PAIRS, [False, True]))
def test_functional_calls_reach_the_adapter(name, kind, training):
    model, injection, x = adapted(name, kind, dtype=torch.float64)
    model.train(training)
    path = {id(p): n for n, p in model.named_parameters()}
    here = {path[id(p)]: p.detach().clone() for p in injection.parameters()}
    randomise(here.values(), 0.2, seed=3)

    def loss(values, x):
        return loss_of(functional_call(model, values, (x,)))

    got_y, got = functional_call(model, here, (x,)), grad(loss)(here, x)
    each = vmap(grad(loss), in_dims=(None, 0))(here, x)
    with torch.no_grad():
        for n, value in here.items():
            model.get_parameter(n).copy_(value)
    assert_close(got_y, model(x))
    for n, gradient in zip(here, gradients(loss_of(model(x)), injection), strict=True):
        assert_close(got[n], gradient)
    for i, row in enumerate(x):
        for n, gradient in zip(here, gradients(loss_of(model(row)), injection), strict=True):
            assert_close(each[n][i], gradient)


@pointwise_pairs
def test_inference_mode_gives_the_same_and_leaves_nothing_behind(name, kind):
    model, injection, x = adapted(name, kind)
    with torch.inference_mode():
        got, weight = model(x), seen(model)
    assert_close(got, model(x))
    assert_close(weight, seen(model))
    train(injection, lambda: loss_of(model(x)), steps=2)


@every_pair
def test_modes_reach_every_adapter(name, kind):
    """Active or not, those that are there and those that come later."""
    model = lone(kind).eval()
    first = dropped(lambda *_, **more: adapt(model, name, **more))
    assert not any(module.training for module in only(first)[0].modules())
    model.train()
    second = inject(model, name, target_modules=[model.target], name="second", **settings(name))
    for mode in (True, False, True):
        model.train(mode)
        for injection in (first, second):
            assert {m.training for m in only(injection)[0].modules()} == {mode}
