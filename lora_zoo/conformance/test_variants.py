"""The promises of every variant on every kind of layer, in double precision unless it says otherwise.

Parametrised over the registry: no variant is named here, and a new file under `variants/` is tested as it is.
"""

import copy
import itertools
import math
import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as drive
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from lora_zoo.conformance.cases import (
    EVERYWHERE,
    KINDS,
    LOW_RANK,
    MATRIX,
    MODELS,
    POINTWISE,
    UNSEEN,
    WHOLE,
    Lone,
    adamw,
    adapt,
    bases,
    batch,
    cases,
    effective_bias,
    few_cases,
    fresh,
    in_a_loop,
    inputs,
    lone,
    mergeable,
    nearest_rank,
    only,
    perturb,
    readable,
    representatives,
    seen,
    settings,
    stored_in,
    takes,
    tensors,
    train,
    with_effective,
)
from lora_zoo.core import processes
from lora_zoo.core.hooks import Progress
from lora_zoo.core.hyperparameters import check_hyperparameters, hyperparameters
from lora_zoo.core.init import find_init, init_names, initial_factors
from lora_zoo.core.processes import Processes, Several
from lora_zoo.core.statistics import ORIGINAL, STATISTICS
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.hosts.find import HOSTS
from lora_zoo.injection.inject import inject
from lora_zoo.injection.preview import preview

EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
NEAR = {"rtol": 1e-2, "atol": 1e-2}
few = drive(max_examples=6, deadline=None, derandomize=True)
every_variant = pytest.mark.parametrize("name", MATRIX)
every_pair = in_a_loop("name, kind", cases())
few_pairs = in_a_loop("name, kind", few_cases())
pointwise_variants = pytest.mark.parametrize("name", POINTWISE)
pointwise_pairs = in_a_loop("name, kind", cases(POINTWISE))
few_pointwise_pairs = in_a_loop("name, kind", few_cases(POINTWISE))
mergeable_pairs = in_a_loop("name, kind", mergeable(cases(POINTWISE)))
few_mergeable_pairs = in_a_loop("name, kind", mergeable(few_cases(POINTWISE)))


def near(name):
    """The tolerance of step 0, which some papers' starts only come near to."""
    return CLOSE if VARIANTS[name].identity_at_start else NEAR


def adapted(name, kind, **more):
    """(model, injection, adapter, host, x) with every trainable tensor moved away from its start."""
    model = lone(kind)
    injection = adapt(model, name, **more)
    perturb(injection)
    return model, injection, *only(injection), inputs(kind)


def test_every_kind_of_host_has_a_layer_here():
    assert {type(only(adapt(lone(kind), MATRIX[0]))[1]) for kind in KINDS} == set(HOSTS.values())


def test_every_variant_and_every_layer_are_among_the_cases():
    """Each variant on the chosen layers, each base on every one, each forward and kernel on further ones."""
    pairs = cases()
    assert len(set(pairs)) == len(pairs)
    taken = {name: {kind for kind in KINDS if takes(name, kind)} for name in MATRIX}
    found_on = {name: {kind for variant, kind in pairs if variant == name} for name in MATRIX}
    for name in MATRIX:
        assert "linear" in found_on[name] >= taken[name] & set(EVERYWHERE)
        assert VARIANTS[name].pointwise or not taken[name] & set(UNSEEN)
    assert all(found_on[name] == taken[name] for name in bases())
    for name in representatives():
        assert len(found_on[name] - set(EVERYWHERE)) >= min(3, len(taken[name] - set(EVERYWHERE)))
    for attribute in ("forward", "output", "kernel"):
        found = {getattr(VARIANTS[name], attribute) for name in representatives()}
        assert found == {getattr(VARIANTS[name], attribute) for name in MATRIX}


def test_the_few_cases_have_every_variant_and_every_layer_with_several_bases():
    pairs = few_cases()
    assert len(set(pairs)) == len(pairs) < len(cases()) and set(pairs) <= set(cases())
    assert {name for name, _ in pairs} == set(MATRIX)
    for kind in KINDS:
        able = [name for name in bases() if takes(name, kind)]
        least = len(able) if kind in EVERYWHERE else min(2, len(able))
        assert len({name for name in able if (name, kind) in pairs}) >= least


@every_pair
def test_function_is_unchanged_at_step_0(name, kind):
    model, x = lone(kind), inputs(kind)
    before = model(x)
    adapter, host = only(adapt(model, name))
    W_OI = host.matrix()
    assert_close(model(x), before, **near(name))
    if VARIANTS[name].pointwise:
        assert_close(adapter.weight(W_OI), W_OI, **near(name))
        same = torch.allclose(adapter.weight(W_OI), W_OI, rtol=1e-12, atol=1e-12)
        assert VARIANTS[name].identity_at_start or not same


@in_a_loop("name, dtype", itertools.product(MATRIX, [torch.float32, torch.float64]))
def test_a_zero_row_of_the_matrix_does_no_harm(name, dtype):
    """Pruned models have them, and magnitudes divide by their norm."""
    model, x = lone("linear", dtype=dtype), inputs("linear", dtype=dtype)
    with torch.no_grad():
        model.layer.weight[3] = 0
    before = model(x)
    injection = adapt(model, name)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else CLOSE
    assert_close(model(x), before, **(tolerance if VARIANTS[name].identity_at_start else NEAR))
    target = torch.randn_like(before)
    first = (model(x) - target).square().mean().item()
    train(injection, lambda: (model(x) - target).square().mean(), steps=20)
    assert all(p.isfinite().all() for p in injection.parameters())
    assert (model(x) - target).square().mean().item() < first


@few_pairs
def test_only_declared_parameters_train_and_each_gets_a_gradient(name, kind):
    model, x = lone(kind), inputs(kind)
    injection = adapt(model, name)
    target = torch.randn_like(model(x))
    declared = injection.named_parameters()
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in declared.values()}
    reached = train(injection, lambda: (model(x) - target).square().mean(), steps=4, total=40)
    assert reached == declared.keys()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@every_variant
@few
@given(
    O=st.integers(6, 20), I=st.integers(6, 20), rank=st.integers(1, 4), kind=st.sampled_from(sorted(KINDS))
)
def test_trainable_count_is_the_stated_formula(name, O, I, rank, kind):
    cls = VARIANTS[name]
    assume(kind != "attention_apart" or O != I)  # of one width, torch keeps its projections in one tensor
    assume(takes(name, kind, O, I))
    rank = nearest_rank(name, lone(kind, O, I), rank)
    hyper = check_hyperparameters(cls, settings(name, rank))
    injection = adapt(lone(kind, O, I), name, rank)
    (place,) = injection.matrices.values()
    assert injection.trainable() == cls.trainable_count([(place.shape, {**hyper, "role": place.role})])


def gradients(y, of):
    """d(fixed random projection of y) / d of, as one list."""
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return torch.autograd.grad((y * weights.to(y.dtype)).sum(), of)


@pointwise_pairs
def test_forward_is_the_layer_with_the_effective_weight_and_bias_in_value_and_gradient(name, kind):
    model, injection, adapter, host, x = adapted(name, kind)
    of = injection.parameters()
    if x.is_floating_point():
        of = [*of, x.requires_grad_()]
    fast, plain = model(x), with_effective(lone(kind), adapter, host, x)
    assert not torch.allclose(plain, lone(kind)(x), atol=1e-3), "the adapter does nothing"
    assert_close(fast, plain, **CLOSE)
    for got, expected in zip(gradients(fast, of), gradients(plain, of), strict=True):
        assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pointwise_variants
@few
@given(data=st.data())
def test_forward_is_the_effective_weight_for_any_shape_rank_and_dtype(name, data):
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    O, I, rank = data.draw(st.tuples(st.integers(6, 19), st.integers(6, 19), st.integers(1, 4)))
    assume((kind != "attention_apart" or O != I) and takes(name, kind, O, I))
    dtype, tolerance = data.draw(st.sampled_from([(torch.float64, 1e-9), (torch.float32, 2e-4)]))
    shape = data.draw(st.sampled_from([(), (5,), (2, 3), (2, 1, 3)]))
    model = lone(kind, O, I, dtype)
    rank = nearest_rank(name, model, rank)
    injection = adapt(model, name, rank)
    perturb(injection)
    (adapter, host), x = only(injection), inputs(kind, I, dtype, batch=shape)
    expected = with_effective(lone(kind, O, I, dtype), adapter, host, x)
    assert_close(model(x), expected, rtol=tolerance, atol=tolerance)


@few_pointwise_pairs
def test_passes_without_gradients_compute_the_same_with_and_without_a_kept_weight(name, kind):
    model, injection, adapter, host, _ = adapted(name, kind)
    model.eval()
    for x in (inputs(kind, batch=(3,)), inputs(kind, batch=(40,))):
        expected = with_effective(lone(kind), adapter, host, x)
        with torch.no_grad():
            assert_close(model(x), expected, **CLOSE)
            with injection.effective() as kept:
                assert_close(model(x), expected, **CLOSE)
                perturb(injection, seed=2)
                changed = model(x)
            assert_close(changed, model(x), **CLOSE)
            assert not torch.allclose(changed, expected, atol=1e-3), "an old weight was used"
        assert bool(kept.left_out) != (kept.memory > 0)


@few_mergeable_pairs
def test_the_bias_is_effective_where_it_is_read_and_merged_and_comes_back_to_the_bit(name, kind):
    """It stays the layer's own parameter where the class does not change it."""
    model, injection, adapter, host, x = adapted(name, kind)
    has = getattr(lone(kind).holder, "bias", None) is not None
    assert (getattr(model.holder, "bias", None) is not None) == (has or adapter.adds_bias)
    if not has and not adapter.adds_bias:
        return
    plain, own, output = lone(kind), model.holder.layer.bias, model(x)
    expected = effective_bias(plain, adapter, host)
    assert_close(model.holder.bias, expected, **EXACT)
    injection.merge()
    assert_close(model.holder.bias.detach(), expected.detach(), **EXACT)
    assert (model.holder.bias is own) == (not adapter.changes_bias)
    assert_close(model(x), output, **CLOSE)
    injection.unmerge()
    injection.remove()
    assert model.holder.bias is own and (torch.equal(own, plain.holder.bias) if has else own is None)


@pointwise_variants
def test_weight_is_pure(name):
    """`weight` reads its argument, not the layer, and writes to neither."""
    model, _, adapter, host, _ = adapted(name, "linear")
    W_OI, kept = host.matrix().detach().clone(), copy.deepcopy(model.state_dict())
    first, second = adapter.weight(W_OI), adapter.weight(2 * W_OI)
    assert_close(adapter.weight(W_OI), first, **EXACT)
    assert not torch.equal(first, second)
    for tensor_name, tensor in model.state_dict().items():
        assert_close(tensor, kept[tensor_name], **EXACT)


@few_pointwise_pairs
def test_factors_are_the_update_or_none(name, kind):
    _, _, adapter, host, _ = adapted(name, kind)
    W_OI, product = host.matrix(), adapter.factors()
    if product is not None:
        assert_close(product[0] @ product[1], adapter.weight(W_OI) - W_OI, **CLOSE)


@mergeable_pairs
def test_merge_then_remove_equals_the_adapted_output(name, kind):
    model, injection, adapter, _, x = adapted(name, kind)
    expected, effective, plain = model(x), seen(model).detach().clone(), lone(kind)
    injection.merge()
    injection.remove()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    gained = model.state_dict().keys() - plain.state_dict().keys()
    assert [name for name in model.state_dict() if name not in gained] == list(plain.state_dict())
    assert not gained or (adapter.adds_bias and gained == {f"{model.kind.at}.bias"})
    assert_close(model(x), expected, **CLOSE)
    assert_close(stored_in(model).detach(), effective, **EXACT)
    assert stored_in(model).shape == stored_in(plain).shape
    assert stored_in(model).is_contiguous()


@few_mergeable_pairs
def test_merging_moves_the_adapted_rows_alone(name, kind):
    """Of a fused projection the other parts, of stacked experts the other matrices, stay to the bit.

    All stays where the class changes the bias alone.
    """
    model, injection, adapter, host, _ = adapted(name, kind)
    W_OI = adapter.weight(host.matrix()).detach()
    injection.merge()
    before = stored_in(lone(kind)).detach()
    assert torch.equal(stored_in(model), model.kind.written(before, W_OI))
    matrix_names, every = int((stored_in(model) != before).sum()), W_OI.numel()
    assert (0 < matrix_names <= every) if adapter.changes_weight else not matrix_names


@few_pointwise_pairs
def test_unmerge_restores_the_weights_bit_for_bit(name, kind):
    if not KINDS[kind].mergeable:
        with pytest.raises(ValueError, match="layer cannot be merged, a quantised linear: it stores codes"):
            adapt(lone(kind), name).merge()
        return
    for dtype in (torch.float64, torch.bfloat16):
        unmerge_restores(name, kind, dtype)


def unmerge_restores(name, kind, dtype):
    model = lone(kind, dtype=dtype)
    before = stored_in(model).detach().clone()
    injection, x = adapt(model, name), inputs(kind, dtype=dtype)
    perturb(injection)
    expected = model(x)
    for _ in range(3):
        injection.merge()
        injection.unmerge()
    assert torch.equal(only(injection)[1].tensor(), before)
    assert torch.equal(model(x), expected)


@few_pairs
def test_disabled_is_the_base_exactly(name, kind):
    model, x = lone(kind).requires_grad_(False), inputs(kind)  # torch's kernels differ in the last bit
    before = model(x)
    injection = adapt(model, name)
    perturb(injection)
    with injection.disabled():
        assert torch.equal(model(x), before)
        assert torch.equal(seen(model), stored_in(lone(kind)))
    assert not torch.allclose(model(x), before, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in POINTWISE if takes(name, "experts")])
def test_a_stack_of_experts_is_made_once_a_pass(name):
    """Its module reads it once an expert; what is kept for a pass is gone after it, also after a failure."""
    model, injection, adapter, _, x = adapted(name, "experts")
    calls, weight = [], adapter.weight
    adapter.weight = lambda W_OI: calls.append(W_OI) or weight(W_OI)
    first = model(x)
    assert len(calls) == 1
    perturb(injection, seed=2)
    assert not torch.allclose(model(x), first) and len(calls) == 2
    with pytest.raises(RuntimeError):
        model(x[..., :-1])
    model.holder.down_proj.sum()
    model.holder.down_proj.sum()
    assert len(calls) == 5, "outside of a pass nothing is kept"


@pointwise_variants
def test_disabled_and_iteration_mean_the_same_while_merged(name):
    model, x = lone("linear"), inputs("linear")
    before = model(x)
    injection = adapt(model, name)
    perturb(injection)
    expected = list(injection)
    injection.merge()
    for got, update in zip(injection, expected, strict=True):
        assert_close(got.W_OI, update.W_OI, **EXACT)
        assert_close(got.dW_OI, update.dW_OI, **EXACT)
    merged = model(x)
    with injection.disabled():
        assert torch.equal(model(x), before)
    assert torch.equal(model(x), merged)


@few_pairs
def test_an_adapter_comes_back_from_disk_bit_for_bit(name, kind, tmp_path):
    model, injection, adapter, _, x = adapted(name, kind)
    save_adapter(injection, tmp_path)
    other = lone(kind)
    loaded = load_adapter(other, tmp_path)
    assert torch.equal(other(x), model(x))
    again, _ = only(loaded)
    assert tensors(again).keys() == tensors(adapter).keys()
    for tensor_name, tensor in tensors(again).items():
        assert torch.equal(tensor, tensors(adapter)[tensor_name]), tensor_name


@every_variant
def test_a_loaded_adapter_trains_in_the_same_groups(name, tmp_path):
    def rates(injection):
        return [(g["lr"], g["weight_decay"], len(g["params"])) for g in injection.param_groups(lr=1.0)]

    for init in init_names(lambda init: VARIANTS[name].accepts_init(init) and not init.needs):
        injection = adapt(lone("linear"), name, init=init)
        save_adapter(injection, tmp_path)
        assert rates(load_adapter(lone("linear"), tmp_path)) == rates(injection), init


class Constants(TorchFunctionMode):
    """Records every `detach()` at the point itself and gives the same values back at its neighbours.

    The derivative with stop-gradients is the derivative of the function in which those values are constants.
    """

    def __init__(self):
        super().__init__()
        self.recorded, self.recording, self.position = [], True, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is not torch.Tensor.detach:
            return result
        if self.recording:
            self.recorded.append(result.clone())
        self.position += 1
        return self.recorded[self.position - 1]

    def rewind(self):
        self.position, self.recording = 0, not self.recorded
        return self


@few_pairs
def test_gradients_are_those_of_finite_differences(name, kind):
    model = lone(kind, O=4, I=6)
    injection = adapt(model, name, rank=2)
    perturb(injection)
    x, constants = inputs(kind, 6, batch=(3,)), Constants()
    paths = {id(p): path for path, p in model.named_parameters()}

    def output(*values):
        # Iterating gradcheck evaluates the point itself first, then its neighbours.
        of = {paths[id(p)]: v for p, v in zip(injection.parameters(), values, strict=True)}
        with constants.rewind():
            result = functional_call(model, of, (x,))
        constants.recording = False
        return result

    points = [p.detach().clone().requires_grad_() for p in injection.parameters()]
    assert torch.autograd.gradcheck(output, points, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


# --- seeds -------------------------------------------------------------------------------------------------

DRAWS = {"rand", "randn", "randint", "randperm", "uniform_", "normal_", "bernoulli_", "bernoulli", "normal"}


class Draws(TorchFunctionMode):
    """Counts the random draws."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in DRAWS
        return function(*args, **(kwargs or {}))


def start(name, seed, layer="linear", **more):
    model = lone(layer)
    return tensors(only(adapt(model, name, seed=seed, **more))[0])


@few_pairs
def test_a_start_depends_on_its_seeds_and_not_on_the_global_stream(name, kind):
    """`seed`, and whatever hyperparameter says by its name that it is one."""
    seeds = {key: 1 for key in hyperparameters(VARIANTS[name]) if key.endswith(("seed", "prng_key"))}
    with Draws() as draws:
        adapter_draws = start(name, 0, kind)
    torch.manual_seed(123)
    stream = torch.get_rng_state()
    model = lone(kind)
    torch.manual_seed(123)
    again = tensors(only(adapt(model, name, seed=0))[0])
    assert torch.equal(torch.get_rng_state(), stream), "the global stream was read"
    assert all(torch.equal(again[n], t) for n, t in adapter_draws.items())
    with Draws() as without:
        lone(kind)
    if draws.count > without.count:
        other = start(name, 1, kind, **seeds)
        assert any(not torch.equal(other[n], t) for n, t in again.items()), "the seed changes nothing"


class UnequalLayers(nn.Module):
    """A layer, its equal and a greater one: its sides are multiples, so that all can be cut alike."""

    def __init__(self, kind="linear"):
        super().__init__()
        self.layer, self.equal, self.greater = lone(kind), lone(kind), lone(kind, 30, 28)

    def names(self, *which):
        return [f"{name}.{getattr(self, name).target}" for name in which]


@few_pointwise_pairs
def test_a_start_does_not_depend_on_which_other_layers_are_adapted(name, kind):
    alone, beside = UnequalLayers(kind), UnequalLayers(kind)
    found = []
    for model, which in ((alone, ["layer"]), (beside, ["layer", "equal", "greater"])):
        injection = adapt(model, name, targets=model.names(*which))
        adapter, place = next(iter(injection.adapters.values())), next(iter(injection.matrices.values()))
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(1.0)
        found.append(adapter.weight(place.host.matrix()))
    assert torch.equal(*found)


@few_pairs
def test_equal_layers_draw_starts_of_their_own(name, kind):
    """Unless all layers share what is drawn, or nothing is."""
    model = UnequalLayers(kind)
    with Draws() as draws:
        injection = adapt(model, name, targets=model.names("layer", "equal"))
    first, second = injection.adapters.values()
    shared = {id(t) for t in tensors(first).values()} & {id(t) for t in tensors(second).values()}
    own = [(t, second.state_dict()[n]) for n, t in first.state_dict().items()]
    if draws.count and not shared:
        assert any(not torch.equal(*pair) for pair in own)


def parallel_rows(few_RI, many_RI):
    """True if each row of the first is parallel to some row of the second."""
    unit = torch.nn.functional.normalize
    cosines = (unit(few_RI.double()) @ unit(many_RI.double()).T).abs().amax(dim=1)
    return bool(((cosines - 1).abs() < 1e-6).logical_or(few_RI.norm(dim=1) == 0).all())


@few_pairs
def test_starts_are_nested_in_rank(name, kind):
    """The directions of a small rank are among those of a greater one, so that a rank ablation is paired.

    Of the tensors that both have: a factor of high rank may be one matrix instead of a product.
    """
    small, great = (tensors(only(adapt(lone(kind), name, rank))[0]) for rank in (2, 4))
    both = small.keys() & great.keys()
    assert both
    for tensor_name in both:
        few_, many = small[tensor_name], great[tensor_name]
        if (few_ == few_.flatten()[0]).all():
            continue  # a constant has no direction
        if few_.ndim == 2 and few_.shape != many.shape:
            along_columns = few_.shape[0] == many.shape[0]
            core = few_.shape[0] == few_.shape[1] and not along_columns  # (R, R): its leading block
            pair = (few_.T, many.T) if along_columns else (few_, many[:, :2] if core else many)
            assert parallel_rows(*(t.detach() for t in pair)), tensor_name


def statistics_of(W_OI):
    """Some statistics of every name, as a matrix of this shape could have them."""
    source = torch.Generator().manual_seed(3)
    x_NI = torch.randn(50, W_OI.shape[1], generator=source, dtype=torch.float64)
    G_OI = torch.randn(W_OI.shape, generator=source)
    moment_II = x_NI.T @ x_NI / len(x_NI)
    values = (x_NI.mean(0), moment_II, x_NI.abs().mean(0), G_OI, G_OI.square(), W_OI)
    return dict(zip(STATISTICS, values, strict=True))


# The right factor of LoRA-GA is the second half of the singular vectors: another half for another rank.
# The halves of an orthogonal pair are of all its rank.
NESTED = init_names(
    lambda init: (
        not init.control
        and init.name[-1] != "4"
        and not {"gradient", ORIGINAL} & set(init.needs)
        and init.name != "orthogonal_pair"
    )
)


@pytest.mark.parametrize("init", NESTED)
def test_every_start_is_nested_in_rank(init):
    W_OI = lone("linear").layer.weight
    small, great = (
        initial_factors(
            init, W_OI, rank=rank, scale=1.0, seed=0, matrix="layer", statistics=statistics_of(W_OI)
        )[0]
        for rank in (2, 4)
    )
    assert parallel_rows(small.A_RI, great.A_RI)
    assert parallel_rows(small.B_OR.T, great.B_OR.T)


def test_orthogonal_rows_are_orthonormal_and_zero_factors_are_zero():
    W_OI = lone("linear").layer.weight
    for name in init_names(lambda init: ORIGINAL not in init.needs):
        start_ = find_init(name)
        A_RI, B_OR = initial_factors(
            name, W_OI, rank=4, scale=0.5, seed=0, matrix="layer", statistics=statistics_of(W_OI)
        )[0]
        assert bool(A_RI.any()) == ("A" not in start_.zero), name
        assert bool(B_OR.any()) == ("B" not in start_.zero), name
        assert not start_.residual or (A_RI.any() and B_OR.any()), name
        if name == "orthogonal":
            assert_close(A_RI @ A_RI.T, torch.eye(4, dtype=A_RI.dtype))


# --- precision, devices and dropout ------------------------------------------------------------------------


@few_pairs
def test_a_bfloat16_base_keeps_its_dtype_and_the_adapter_float32(name, kind):
    model, x = lone(kind, dtype=torch.bfloat16), inputs(kind, dtype=torch.bfloat16)
    wide = lone(kind, dtype=torch.bfloat16).double()
    before = model(x)
    injection = adapt(model, name)
    kinds = {t.dtype for t in tensors(only(injection)[0]).values() if t.is_floating_point()}
    assert kinds == {torch.float32}
    assert model(x).dtype == torch.bfloat16
    assert_close(model(x), before, rtol=2e-2, atol=2e-2)
    exact = adapt(wide, name)
    perturb(injection)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), injection.parameters(), strict=True):
            p.copy_(q)
    with torch.no_grad():
        expected = wide(x.double() if x.is_floating_point() else x)
        assert float((model(x).double() - expected).norm() / expected.norm()) < 2e-2
    codes = only(injection)[1].stores_codes  # whose values are read in float32
    assert readable(model, injection).dtype == (torch.float32 if codes else torch.bfloat16)


@few_pairs
def test_an_adapter_lives_on_the_device_of_its_layer(name, kind):
    """On torch's `meta` device, which needs no accelerator to tell a tensor left behind."""
    model = lone(kind, dtype=torch.float32).to("meta")
    injection = adapt(model, name)
    assert {t.device.type for t in tensors(only(injection)[0]).values()} == {"meta"}
    assert model(inputs(kind, dtype=torch.float32).to("meta")).device.type == "meta"
    injection.param_groups(lr=1.0)


def with_dropout(name, kind="linear", p=0.5, **more):
    """A model with dropout in the adapter's branch and every tensor perturbed; skips where there is none."""
    if "lora_dropout" not in hyperparameters(VARIANTS[name]):
        pytest.skip("has no dropout")
    model = lone(kind)
    try:
        injection = adapt(model, name, lora_dropout=p, **more)
    except ValueError as refusal:
        assert "lora_dropout" in str(refusal) and "init" in str(refusal)
        pytest.skip("refuses dropout with its residual start")
    perturb(injection)
    return model.train()


@every_variant
def test_dropout_masks_reproduce_and_ignore_the_global_stream(name):
    x, outputs = inputs("linear"), []
    for stream in (1, 2):
        torch.manual_seed(stream)
        model, other_seed = with_dropout(name), with_dropout(name, seed=5)
        state = torch.get_rng_state()
        outputs.append([model(x), model(x)])
        assert torch.equal(torch.get_rng_state(), state), "the global stream was read"
        other_seed.layer.adapters.load_state_dict(model.layer.adapters.state_dict())
        assert not torch.allclose(other_seed(x), outputs[-1][0])
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first, second)
    assert not torch.allclose(outputs[0][0], outputs[0][1]), "every pass has the same mask"


@every_variant
def test_dropout_leaves_evaluation_alone(name):
    dropped = with_dropout(name).eval()
    plain = lone("linear")
    perturb(adapt(plain, name))
    x = inputs("linear")
    assert_close(dropped(x), plain(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(dropped.train()(x), plain(x))


PASSES, COPIES = 50, 8


@every_variant
def test_dropout_is_unbiased(name):
    """The mean of many passes is the output without dropout: over copies of the input, which share a pass."""
    model, x = with_dropout(name, p=0.25), inputs("linear")
    copies = torch.cat([x] * COPIES)
    with torch.no_grad():
        outputs = torch.stack([model(copies).unflatten(0, (COPIES, -1)).mean(0) for _ in range(PASSES)])
        error = (outputs.mean(0) - model.eval()(x)).abs()
    assert (error < 5 * outputs.std(0) / math.sqrt(PASSES) + 1e-9).all()


@pytest.mark.parametrize("name", [n for n in POINTWISE if "lora_dropout" in hyperparameters(VARIANTS[n])])
def test_dropout_is_refused_where_an_adapter_never_sees_the_input(name):
    unseen = [kind for kind in UNSEEN if takes(name, kind)]
    for kind in unseen if name in representatives() else unseen[:1]:
        with pytest.raises(ValueError, match=r"lora_dropout=0\.5"):
            adapt(lone(kind), name, lora_dropout=0.5)


@in_a_loop("name, kind", [(n, k) for n, k in few_cases() if k not in UNSEEN])
def test_dropout_keeps_embeddings_and_bias_whole(name, kind):
    """With the branch's input dropped altogether, what remains is finite and the bias is there once."""
    model, x = with_dropout(name, kind), inputs(kind)
    y = model(x)
    assert y.isfinite().all()
    if kind.endswith("embedding"):
        assert torch.equal(y, model.eval()(x))


@in_a_loop("name, path", itertools.product(POINTWISE, ["fused", "plain"]))
def test_dropout_acts_on_the_update_alone(name, path):
    """y = W x + (W' - W) drop(x), by the kernel (where there is one) and by ordinary operations.

    What a residual start took from W sees all of x.
    """
    model, x = with_dropout(name), inputs("linear")
    (adapter,) = model.layer.adapters.values()
    seen_by = []
    adapter.dropout.register_forward_hook(lambda *given: seen_by.append(given[-1]))
    if path == "plain":
        adapter.register_forward_hook(lambda *_: None)
    kernel = adapter.path(x, model.layer.entries["default"][0].host)
    assert kernel.startswith(path) or adapter.fused is None
    y, W_OI = model(x), model.layer.layer.weight
    adapter.counter.counts = dict.fromkeys(adapter.counter.counts, 0)
    dropped = seen_by[0] if seen_by else adapter.dropout.mask(x).zero(x) * 2
    update_OI = adapter.weight(W_OI) - W_OI
    start = adapter.pairs()[1] if adapter.kernel and adapter.fused is None else None
    spared = 0 if start is None else start.scale * (x - dropped) @ (start.B_OR @ start.A_RI).T
    assert_close(y, model.layer.layer(x) + dropped @ update_OI.T + spared, **CLOSE)


class Recomputed(Lone):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@every_variant
def test_a_recomputed_layer_sees_the_same_mask(name):
    x, found = inputs("linear"), []
    for cls in (Lone, Recomputed):
        model = with_dropout(name)
        model.__class__ = cls
        (model(x) ** 2).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for n, gradient in found[0].items():
        assert_close(found[1][n], gradient, **CLOSE)


@every_variant
def test_two_layers_do_not_share_a_dropout_mask(name):
    with_dropout(name)
    model = UnequalLayers().train()
    injection = adapt(model, name, targets=model.names("layer", "equal"), lora_dropout=0.5)
    x = torch.ones(64, dtype=torch.float64)
    first, second = (a.dropout(x) for a in injection.adapters.values())
    assert not torch.equal(first, second)
    assert set(first.tolist()) == {0.0, 2.0}


# --- laws --------------------------------------------------------------------------------------------------


@few_pairs
def test_the_law_of_the_adapter_and_of_the_method_hold_after_training(name, kind):
    model, x = lone(kind), inputs(kind)
    injection = adapt(model, name)
    adapter, host = only(injection)
    W_OI = host.matrix().detach()
    adapter.law(W_OI)
    target = torch.randn_like(model(x))
    train(injection, lambda: (model(x) - target).square().mean(), steps=20)
    adapter.law(W_OI)
    injection.hooks.law()
    perturb(injection)
    adapter.law(W_OI)


@in_a_loop("name, kind", itertools.product(WHOLE, MODELS))
def test_the_law_of_a_method_without_a_matrix_holds_after_training(name, kind):
    """It has as many parameters as it says, drawn from the seed alone, and each gets a gradient."""
    injections = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(injections))
        model, where = fresh(kind)
        injections.append(inject(model, name, **where, seed=seed, **settings(name)))
    injection, again, other = injections
    model, in_full = injection.model, sum(injection.trained[n].numel() for n in injection.fully_trained)
    assert injection.trainable() - in_full == VARIANTS[name].trainable_beside(model, injection.hyper)
    assert_close(again.state_dict(), injection.state_dict(), **EXACT)
    for key, tensor in other.state_dict().items():
        assert (
            key in injection.trained
            or not tensor.any()
            or not torch.equal(tensor, injection.state_dict()[key])
        )
    injection.hooks.law()
    model.train()
    reached = train(injection, lambda: model(**batch(kind)).loss, steps=3)
    assert injection.named_parameters().keys() - injection.trained.keys() <= reached
    model.eval()
    injection.hooks.law()


@every_variant
def test_a_skipped_step_changes_no_parameter_and_breaks_no_law(name):
    """The first one, two in a row, and one alone."""
    model, x, skipped = lone("linear"), inputs("linear"), (1, 3, 4, 6)
    injection, target = adapt(model, name), torch.randn_like(model(x))
    seen_at: list[dict[str, torch.Tensor]] = []

    def loss():
        seen_at.append({n: p.detach().clone() for n, p in injection.named_parameters().items()})
        return (model(x) - target).square().mean()

    train(injection, loss, steps=7, skipped=skipped)
    for step in skipped:
        assert_close(seen_at[step], seen_at[step - 1], **EXACT)
    assert all(torch.isfinite(p).all() for p in injection.parameters())
    only(injection)[0].law(only(injection)[1].matrix().detach())
    injection.hooks.law()


@every_variant
def test_training_goes_on_to_the_bit_from_what_a_checkpoint_holds(name):
    """The states of the adapter, the hooks and the optimiser, and the count of passes."""
    runs, x = [(model, adapt(model, name)) for model in map(lone, 3 * ("linear",))], inputs("linear")
    target = torch.randn_like(runs[0][0](x))
    optimizers = [adamw(injection) for _, injection in runs]

    def go(number, **steps):
        model, injection = runs[number]
        more = {"total": 8, "optimizer": optimizers[number]}
        train(injection, lambda: (model(x) - target).square().mean(), **steps, **more)

    go(0, steps=8)
    go(1, steps=5)
    (_, stopped), (_, resumed) = runs[1:]
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    resumed.hooks.load_state_dict(stopped.hooks.state_dict())
    optimizers[2].load_state_dict(optimizers[1].state_dict())
    resumed.counter.counts = stopped.counter.counts
    go(2, first=6, steps=8)
    whole = runs[0][1].state_dict()
    assert {n for n, t in resumed.state_dict().items() if not torch.equal(t, whole[n])} == set()


def gathers(name, **more):
    cls = VARIANTS[name]
    return cls.hooks.gathers(**check_hyperparameters(cls, settings(name, **more)))


def add_gradients(one, other):
    """As processes do: each has the sum of both, and None where neither has one."""
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        if p.grad is not None and q.grad is not None:
            p.grad += q.grad
            q.grad = p.grad.clone()


def end_step(injection, optimizer, progress):
    injection.hooks.on_after_backward(progress)
    if optimizer is not None:
        optimizer.step()
    injection.hooks.on_step_end(progress)
    for p in injection.parameters():
        p.grad = None


@pytest.mark.parametrize("name", [name for name in MATRIX if not gathers(name)])
def test_processes_that_divide_a_batch_learn_what_one_learns_of_it(name, monkeypatch):
    """Each has its rows, its share of the loss and of the penalty, and the sum of all gradients."""
    runs, x = [(model, adapt(model, name)) for model in map(lone, 3 * ("linear",))], inputs("linear")
    target, places = torch.randn_like(runs[0][0](x)), (Processes(), Several(0, 2, ""), Several(1, 2, ""))
    optimizers = [adamw(injection) for _, injection in runs]
    for _, injection in runs:
        perturb(injection)
        injection.hooks.on_train_begin(3)
    for progress in (Progress(step, 3) for step in (1, 2, 3)):
        for (model, injection), here in zip(runs, places, strict=True):
            monkeypatch.setattr(processes, "_HERE", [here])
            with injection.hooks.forward_context(progress):
                share = len(own := here.part(x)) / len(x)
                loss = (model(own) - here.part(target)).square().mean() * share
                (loss + injection.hooks.regularizer() / here.size).backward()
        add_gradients(runs[1][1], runs[2][1])
        for (_, injection), optimizer in zip(runs, optimizers, strict=True):
            end_step(injection, optimizer, progress)
    alone, *others = ({**own.state_dict(), **own.hooks.state_dict()} for _, own in runs)
    for other in others:
        assert_close(other, alone, rtol=1e-6, atol=1e-6)


def shares_of(name):
    """The parts into which the variant called `name` divides the training examples."""
    cls = VARIANTS[name]
    return cls.hooks.parts(**check_hyperparameters(cls, settings(name)))


@pytest.mark.parametrize("name", [name for name in MATRIX if shares_of(name)])
def test_every_part_has_its_turns_and_every_parameter_learns_on_some_part(name):
    model, x, moved = lone("linear"), inputs("linear"), {part: set() for part in shares_of(name)}
    injection, target, seen_at = adapt(model, name), torch.randn_like(model(x)), []
    assert math.fsum(shares_of(name).values()) == pytest.approx(1) and min(shares_of(name).values()) > 0

    def loss():
        seen_at.append({n: p.detach().clone() for n, p in injection.named_parameters().items()})
        return (model(x) - target).square().mean()

    train(injection, loss, steps=24)
    for step, (before, after) in enumerate(itertools.pairwise(seen_at), start=1):
        changed = {n for n, p in after.items() if not torch.equal(p, before[n])}
        moved[injection.hooks.part(step)] |= changed
    assert set.union(*moved.values()) == seen_at[0].keys() and all(moved.values())


@every_variant
def test_the_model_may_write_into_the_output_of_an_adapted_layer(name):
    """As Wav2Vec2 writes zeros over masked frames, and Longformer divides its queries."""
    model, injection, _, _, x = adapted(name, "linear")
    counts, found = dict(injection.counter.counts), []
    for in_place in (True, False):
        injection.counter.counts = counts
        y = model.train()(x)
        y = y.div_(3) if in_place else y / 3
        y[:, 0] = 0
        y.square().sum().backward()
        found.append([y.detach(), *[p.grad for p in injection.parameters()]])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        assert_close(one, other, **CLOSE)


@every_variant
def test_a_view_is_a_model_of_its_own_and_leaves_the_whole_as_it_was(name):
    model = lone("linear")
    injection = adapt(model, name)
    perturb(injection)
    x = inputs("linear")
    whole, before = model(x), copy.deepcopy(injection.state_dict())
    for view, context in injection.hooks.views().items():
        assert re.fullmatch(r"[\w=-]+", view)
        with context:
            judged = model(x)
            if injection.variant.pointwise and injection.hooks.pointwise_views:
                injection.merge()
                assert_close(model(x), judged, **CLOSE)
                injection.unmerge()
            elif injection.variant.pointwise:
                with pytest.raises(ValueError, match="no matrix"):
                    injection.merge()
        assert not torch.allclose(judged, whole), f"{view} is the whole model"
        with injection.hooks.views()[view]:
            assert torch.equal(model(x), judged), "a view differs from one use to the next"
            with torch.no_grad(), injection.effective():
                assert_close(model.eval()(x), judged, **CLOSE)
        with torch.no_grad(), injection.effective(), injection.hooks.views()[view]:
            assert_close(model(x), judged, **CLOSE)
        assert torch.equal(model(x), whole)
    assert all(torch.equal(t, before[n]) for n, t in injection.state_dict().items())
    assert list(preview(lone("linear"), name, target_modules="layer", **settings(name)).views) == [
        *injection.hooks.views()
    ]


@every_variant
def test_what_the_hooks_keep_computes_the_same_in_memory_and_from_its_file(name, tmp_path):
    model, x = lone("linear"), inputs("linear")
    injection, target = adapt(model, name), torch.randn_like(model(x))
    assert set(injection.hooks.ranks().items()) <= {
        (n, a.components()) for n, a in injection.adapters.items()
    }
    train(injection, lambda: (model(x) - target).square().mean(), steps=20)
    told, kept = injection.hooks.ranks(), injection.hooks.kept()
    assert all(told[n] == len(kept[n]) or told[n] < len(kept[n]) == 1 for n in told.keys() & kept.keys())
    seen, trainable = model(x).detach(), injection.trainable()
    smaller = injection.shrink()
    assert smaller == (injection.trainable() < trainable)
    assert_close(model(x), seen)
    save_adapter(injection, tmp_path)
    load_adapter(injection.remove(), tmp_path)
    assert_close(model(x), seen)


# --- starts ------------------------------------------------------------------------------------------------

STARTS = init_names(lambda init: not (init.control or init.moves or init.needs))


@in_a_loop("name, init", itertools.product(LOW_RANK, STARTS))
def test_any_start_that_is_allowed_leaves_the_function_and_any_other_is_refused(name, init):
    model, x = lone("linear"), inputs("linear")
    before, cls = model(x), VARIANTS[name]
    if not cls.accepts_init(find_init(init)):
        with pytest.raises(ValueError, match=init):
            adapt(model, name, init=init)
        assert torch.equal(model(x), before)
        return
    injection = adapt(model, name, init=init)
    assert_close(model(x), before, **CLOSE)
    for tensor in tensors(only(injection)[0]).values():
        assert tensor.isfinite().all()
    target = torch.randn_like(before)
    train(injection, lambda: (model(x) - target).square().mean(), steps=3, total=30)
    assert not torch.allclose(model(x), before, atol=1e-4), "this start does not learn"


@every_variant
def test_an_unknown_start_is_refused_by_name(name):
    if "init" in hyperparameters(VARIANTS[name]):
        with pytest.raises(ValueError, match="kaimingg"):
            adapt(lone("linear"), name, init="kaimingg")


@in_a_loop("name, rank", itertools.product(MATRIX, [0, -1]))
def test_a_rank_below_one_is_refused(name, rank):
    if "rank" in hyperparameters(VARIANTS[name]):
        with pytest.raises(ValueError, match="rank"):
            adapt(lone("linear"), name, rank=rank)
