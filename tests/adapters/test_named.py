"""Several named adapters on one model: add, activate one or several, disable, delete, list, save, load."""

import contextlib
import copy
import warnings
from functools import partial

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import (
    KINDS,
    MATRIX,
    POINTWISE,
    batch,
    effective_bias,
    few_cases,
    fresh,
    in_a_loop,
    inputs,
    logits,
    lone,
    mergeable,
    only,
    own_bias,
    perturb,
    settings,
    train,
)
from lora_zoo.core.composition import COMPOSITIONS, Composition
from lora_zoo.core.hooks import Progress
from lora_zoo.core.hyperparameters import keywords
from lora_zoo.formats.native import load_adapter, load_adapters, save_adapters
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from lora_zoo.injection.wrappers import AdapterWrapper

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
every_variant = pytest.mark.parametrize("name", MATRIX)
every_pair = in_a_loop("name, kind", few_cases())
pointwise_pairs = in_a_loop("name, kind", mergeable(few_cases(POINTWISE)))


def two(name, kind, rank=2):
    """A `lone` model with adapters "a" (lora) and "b" (the variant), both away from their start."""
    model = lone(kind).requires_grad_(False)
    first = inject(model, "lora", target_modules=[model.target], rank=3, name="a")
    second = inject(model, name, target_modules=[model.target], name="b", seed=1, **settings(name, rank))
    perturb(first, seed=1)
    perturb(second, seed=2)
    return model, first, second


@pointwise_pairs
def test_the_changes_of_active_adapters_are_added_with_their_weights(name, kind):
    model, first, second = two(name, kind)
    adapters, x = adapters_of(model), inputs(kind)
    W_OI = only(first)[1].matrix()
    changes = {i.name: only(i)[0].weight(W_OI) - W_OI for i in (first, second)}
    plain = lone(kind).requires_grad_(False)
    for active in ({}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {"b": 1, "a": 1}, {"b": -2, "a": 0.5}, {"b": 3}):
        weighted = {} if {*active.values()} <= {1} else {"weights": [*active.values()]}
        adapters.activate(*active, **weighted)
        assert adapters.active == tuple(active)
        W = W_OI + sum((weight * changes[n] for n, weight in active.items()), torch.zeros_like(W_OI))
        twin = copy.deepcopy(plain)
        stored = twin.get_parameter(f"{model.kind.at}.{model.kind.tensor}")
        stored.data = model.kind.written(stored, W).detach().clone()
        for changed in (i for i in (first, second) if i.name in active and i.variant.changes_bias):
            adapter, host = only(changed)
            if adapter.changes_bias_of(host):
                more = effective_bias(plain, adapter, host) - own_bias(plain)
                own = own_bias(plain) if twin.holder.bias is None else twin.holder.bias
                twin.holder.bias = nn.Parameter((own + active[changed.name] * more).detach())
        expected = twin(x)
        assert_close(model(x), expected, **CLOSE)
        adapters.merge()
        assert_close(model(x), expected, **CLOSE)
        adapters.unmerge()
    adapters.activate()
    assert torch.equal(model(x), plain(x))


class Larger(Composition):
    """Takes each entry from the adapter that changes it most: no linear composition."""

    name, of_outputs = "larger", False

    def combine(self, base, changed, place):
        every = torch.stack([own - base for own in changed.values()])
        return base + every.gather(0, every.abs().argmax(0, keepdim=True))[0]


@pointwise_pairs
def test_a_composition_that_is_not_linear_composes_weights_and_outputs_follow(name, kind):
    model, first, second = two(name, kind)
    adapters, x = adapters_of(model), inputs(kind)
    W_OI, (dora, host) = only(first)[1].matrix(), only(second)
    adapters.activate("a", "b", composition=Larger(("a", "b")))
    mine, theirs = only(first)[0].weight(W_OI) - W_OI, dora.weight(W_OI) - W_OI
    plain = lone(kind).requires_grad_(False)
    stored = plain.get_parameter(f"{model.kind.at}.{model.kind.tensor}")
    W = W_OI + torch.where(mine.abs() > theirs.abs(), mine, theirs)
    stored.data = model.kind.written(stored, W).detach().clone()
    if dora.changes_bias_of(host):
        plain.holder.bias = nn.Parameter(effective_bias(plain, dora, host).detach())
    assert_close(model(x), plain(x), **CLOSE)
    adapters.merge()
    assert_close(model(x), plain(x), **CLOSE)


@pytest.mark.parametrize(
    "name", [name for name, cls in COMPOSITIONS.items() if not (cls.examples or cls.routes)]
)
def test_every_composition_is_the_same_in_outputs_weights_and_files_of_one_model(name):
    cls = COMPOSITIONS[name]
    known: dict[str, object] = {"weights": [0.3, -1.5], "task": "b"}
    options = {key: value for key, value in known.items() if key in keywords(cls)}
    model, _, _ = two("lora" if cls.of_factors else "dora", "linear", 3)
    adapters, x = adapters_of(model), inputs("linear")
    adapters.activate("a", "b", composition=name, **options)
    together = model(x)
    assert_close(nn.functional.linear(x, model.layer.weight, model.layer.bias), together, **CLOSE)
    with adapters.disabled():
        assert adapters.active == ()
    assert torch.equal(model(x), together) and adapters.composition.name == name
    adapters.merge()
    assert_close(model(x), together, **CLOSE)
    with adapters.disabled():
        assert torch.equal(model(x), lone("linear").requires_grad_(False)(x))
    assert_close(model(x), together, **CLOSE)
    adapters.unmerge()
    combine = partial(adapters.composition.combine, place="bias")
    base, own = torch.zeros(3).double(), {n: torch.randn(3, dtype=torch.float64) for n in ("a", "b")}
    assert torch.equal(combine(base, {"a": base, "b": base}), base), "no change, no change"
    assert_close(combine(base, own), combine(base, dict(reversed(own.items()))))


def test_weights_are_peft_s_of_add_weighted_adapter(tmp_path):
    model, _ = fresh("llama")
    for seed, name in enumerate(("a", "b")):
        perturb(inject(model, "lora", rank=2 + seed, alpha=3 + seed, name=name), 0.3, seed)
        save_peft(adapters_of(model)[name], tmp_path / name)
    theirs = PeftModel.from_pretrained(fresh("llama")[0], tmp_path / "a", adapter_name="a")
    theirs.load_adapter(tmp_path / "b", adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.7, 1.6], "both", combination_type="cat")
    theirs.set_adapter("both")
    adapters_of(model).activate("a", "b", weights=[0.7, 1.6])
    assert_close(logits(model, "llama"), logits(theirs, "llama"), rtol=1e-5, atol=1e-6)


def test_an_adapter_keeps_its_weight_while_others_come_and_go():
    model, first, second = two("dora", "linear")
    adapters, x = adapters_of(model), inputs("linear")
    adapters.activate("a", "b", weights=[0.5, 2])
    second.enable(False)
    alone = model(x)
    adapters.activate("a", weights=[0.5])
    assert torch.equal(model(x), alone)
    second.enable()
    expected = model(x)
    adapters.activate("a", "b", weights=[0.5, 1])
    assert torch.equal(model(x), expected)
    second.remove()
    assert adapters.active == ("a",) and torch.equal(model(x), alone)
    first.activate()
    assert not torch.allclose(model(x), alone)


@every_pair
def test_gradients_touch_the_active_adapters_only(name, kind):
    model, first, second = two(name, kind)
    x = inputs(kind)
    for active, idle in (((first,), (second,)), ((second,), (first,)), ((first, second), ())):
        model.zero_grad(set_to_none=True)
        adapters_of(model).activate(*(i.name for i in active))
        with contextlib.ExitStack() as steps:
            for injection in active:
                steps.enter_context(injection.hooks.forward_context(Progress(1, 10)))
            (model(x).square().sum() + sum(i.hooks.regularizer() for i in active)).backward()
        assert all(p.grad is not None and p.grad.any() for i in active for p in i.parameters())
        assert all(p.grad is None for i in idle for p in i.parameters())


def test_the_newest_adapter_is_the_active_one_and_the_others_are_kept():
    model, first, second = two("dora", "linear")
    adapters, x = adapters_of(model), inputs("linear")
    assert list(adapters) == ["a", "b"] and len(adapters) == 2 and adapters["b"] is second
    assert adapters.active == ("b",)
    with_b = model(x)
    first.activate()
    assert adapters.active == ("a",) and not torch.allclose(model(x), with_b)
    second.enable()
    assert adapters.active == ("a", "b")
    first.enable(False)
    assert torch.equal(model(x), with_b)
    with second.disabled():
        assert adapters.active == () and torch.equal(model(x), lone("linear").requires_grad_(False)(x))
    assert adapters.active == ("b",)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_deleted_and_leaves_no_trace(kind):
    model, first, second = two("dora", kind)
    x = inputs(kind)
    first.activate()
    with_a = model(x)
    second.remove()
    assert list(adapters_of(model)) == ["a"] and torch.equal(model(x), with_a)
    first.remove()
    plain = lone(kind)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())
    assert not adapters_of(model) and not model._forward_pre_hooks
    assert not any(p.requires_grad for p in model.parameters())


def test_an_adapter_that_is_named_twice_acts_once():
    model, _, _ = two("dora", "linear")
    adapters, x = adapters_of(model), inputs("linear")
    adapters.activate("a", "b", "a")
    twice = model(x)
    adapters.activate("a", "b")
    assert adapters.active == ("a", "b") and torch.equal(model(x), twice)


def test_deleting_the_active_adapter_leaves_the_others_active():
    model, first, _ = two("lora", "linear")
    adapters_of(model).activate("a", "b")
    first.remove()
    assert adapters_of(model).active == ("b",)
    assert len([m for m in model.modules() if isinstance(m, AdapterWrapper)]) == 1


def test_adapters_may_sit_on_different_matrices_and_on_parts_of_one():
    model, x = fresh("gpt2")[0], "gpt2"
    before = logits(model, x)
    found = {}
    for name, targets in (("whole", ["c_attn"]), ("part", ["q"]), ("mlp", ["up", "down"])):
        perturb(inject(model, "dora", rank=2, target_modules=targets, name=name), 0.1)
        found[name] = logits(model, x)
    adapters_of(model).activate("whole", "part", "mlp")
    together = logits(model, x)
    adapters_of(model).merge()
    assert_close(logits(model, x), together, rtol=1e-5, atol=1e-5)
    adapters_of(model).unmerge()
    for name, expected in found.items():
        adapters_of(model).activate(name)
        assert torch.equal(logits(model, x), expected)
    adapters_of(model).remove()
    assert torch.equal(logits(model, x), before)


def test_training_one_adapter_leaves_the_others_bit_for_bit():
    model, first, second = two("lora", "linear")
    kept = copy.deepcopy(first.state_dict())
    x = inputs("linear")
    train(second, lambda: model(x).square().mean(), steps=3, total=30)
    assert all(torch.equal(t, kept[n]) for n, t in first.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*tied.*")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_each_adapter_has_its_own_copy_of_what_trains_in_full(kind):
    model, _ = fresh(kind)
    module = "classifier" if kind == "bert" else "lm_head"
    before = logits(model, kind)
    outputs = {}
    for name in ("a", "b"):
        injection = inject(model, "lora", rank=2, modules_to_save=[module], name=name)
        assert_close(logits(model, kind), before, rtol=1e-5, atol=1e-6)
        train(injection, lambda: model(**batch(kind)).loss, steps=2, total=20)
        perturb(injection, 0.1, seed=len(name) + ord(name))
        outputs[name] = logits(model, kind)
    for name, expected in outputs.items():
        adapters_of(model).activate(name)
        assert torch.equal(logits(model, kind), expected)
    with pytest.raises(ValueError, match=f"'a' and 'b' both train {module}.*in full"):
        adapters_of(model).activate("a", "b")
    assert torch.equal(logits(model, kind), outputs["b"]), "a refusal changes nothing"
    with adapters_of(model).disabled():
        assert torch.equal(logits(model, kind), before)


def test_what_an_adapter_trains_in_full_takes_no_weight():
    model, _ = fresh("bert")
    inject(model, "lora", rank=2, modules_to_save=["classifier"], name="a")
    inject(model, "lora", rank=2, name="b")
    with pytest.raises(ValueError, match=r"weighted_sum composes adapters, and 'a' trains classifier"):
        adapters_of(model).activate("a", "b", weights=[0.5, 0.5])
    adapters_of(model).activate("a", "b", weights=[1, 0.5])


def test_what_has_no_weight_is_composed_by_outputs_alone():
    model, _, _ = two("hydralora", "linear")
    adapters, x = adapters_of(model), inputs("linear")
    plain, alone = lone("linear").requires_grad_(False)(x), {}
    for name in ("a", "b"):
        adapters.activate(name)
        alone[name] = model(x) - plain
    adapters.activate("a", "b", weights=[0.5, 2])
    assert_close(model(x), plain + 0.5 * alone["a"] + 2 * alone["b"], **CLOSE)
    with pytest.raises(ValueError, match=r"hydralora has no effective weight.*composed by larger"):
        adapters.activate("a", "b", composition=Larger(("a", "b")))


def test_what_one_trains_in_full_another_cannot_adapt_at_the_same_time():
    model, _ = fresh("bert")
    inject(model, "lora", rank=2, modules_to_save=["classifier"], name="a")
    inject(model, "lora", rank=2, target_modules=["head"], name="b")
    with pytest.raises(ValueError, match=r"'a' trains classifier\.weight in full, 'b' adapts it"):
        adapters_of(model).activate("a", "b")
    expected = logits(model, "bert")
    adapters_of(model).activate("a")
    adapters_of(model).activate("b")
    assert torch.equal(logits(model, "bert"), expected)


def test_full_fine_tuning_beside_an_adapter_trains_what_lies_beneath():
    model, _ = fresh("bert")
    plain = logits(model, "bert")
    first = inject(model, "lora", rank=2, name="a")
    perturb(first)
    adapted = logits(model, "bert")
    everything = inject(model, "full", name="everything")
    assert torch.equal(logits(model, "bert"), plain)
    assert set(everything.trained) == set(dict(fresh("bert")[0].named_parameters()))
    perturb(everything, 0.1)
    assert not torch.allclose(logits(model, "bert"), plain)
    first.activate()
    assert torch.equal(logits(model, "bert"), adapted)
    everything.remove()
    first.remove()
    assert torch.equal(logits(model, "bert"), plain)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: adapters_of(m).activate("c"), "unknown adapter 'c'. Did you mean|unknown adapter 'c'"),
        (lambda m: inject(m, "lora", target_modules=["layer"], name="a"), "adapted already by 'a'"),
        (lambda m: (adapters_of(m).merge(), adapters_of(m)["a"].remove()), "merged"),
        (lambda m: adapters_of(m)["a"].merge(), "'a' is not active"),
        (lambda m: adapters_of(m).activate("a", composition="mean"), "unknown composition 'mean'"),
        (lambda m: adapters_of(m).activate("a", "b", weights=[1.0]), "one for each of a, b is needed; got 1"),
        (lambda m: adapters_of(m).activate("a", weights=0.5), "weights must be a list, each a number"),
        (lambda m: adapters_of(m).activate("a", composition="sum", weights=[1]), "sum: unknown hyperparamet"),
    ],
)
def test_what_cannot_be_is_refused(call, said):
    model, _, _ = two("lora", "linear")
    with pytest.raises(ValueError, match=said):
        call(model)


def test_merged_adapters_are_removed_together():
    model, _, _ = two("dora", "linear")
    adapters, x = adapters_of(model), inputs("linear")
    adapters.activate("a", "b")
    expected = model(x)
    adapters.merge()
    adapters.remove()
    assert type(model.layer) is nn.Linear and not adapters_of(model)
    assert_close(model(x), expected, **CLOSE)


@every_variant
def test_adapters_are_saved_and_loaded_by_name(name, tmp_path):
    model, _, _ = two(name, "linear")
    x, outputs = inputs("linear"), {}
    for adapter in ("a", "b"):
        adapters_of(model).activate(adapter)
        outputs[adapter] = model(x)
    save_adapters(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    other = lone("linear")
    assert list(load_adapters(other, tmp_path)) == ["a", "b"]
    for adapter, expected in outputs.items():
        adapters_of(other).activate(adapter)
        assert torch.equal(other(x), expected)
    load_adapter(other, tmp_path / "a", name="again")
    assert torch.equal(other(x), outputs["a"])
    with pytest.raises(ValueError, match="'a' already"):
        load_adapter(other, tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no adapters"):
        load_adapters(other, tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_an_adapted_model_has_adapters_of_its_own(kind):
    model, _, _ = two("dora", kind)
    x, expected = inputs(kind), None
    adapters_of(model).activate("a", "b")
    expected, twin = model(x), copy.deepcopy(model)
    assert torch.equal(twin(x), expected)
    adapters_of(twin)["b"].remove()
    assert not torch.allclose(twin(x), expected) and torch.equal(model(x), expected)
    adapters_of(twin).remove()
    assert torch.equal(twin(x), lone(kind).requires_grad_(False)(x)) and torch.equal(model(x), expected)


def test_adapters_with_methods_and_dropout_keep_their_own_clocks():
    model = lone("linear").train()
    first = inject(model, "adalora", rank=2, target_modules=["layer"], name="a", lora_dropout=0.5)
    second = inject(model, "lora_plus", rank=2, target_modules=["layer"], name="b", lora_dropout=0.5)
    assert first.counter is not second.counter
    assert {len(g["params"]) for g in second.param_groups(lr=1.0)} == {1}
    x = inputs("linear")
    train(first_active(first), lambda: model(x).square().mean(), steps=20)
    first.hooks.law()


def first_active(injection):
    injection.activate()
    return injection


def test_untying_says_what_it_costs():
    model, _ = fresh("llama")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        injection = inject(model, "lora", rank=2, target_modules=["embed"])
        injection.merge()
    said = " ".join(str(w.message) for w in heard)
    assert "unties model.embed_tokens from lm_head.weight" in said and "592 parameters" in said
    assert model.config.tie_word_embeddings is False
    injection.unmerge()
    assert model.config.tie_word_embeddings is True
