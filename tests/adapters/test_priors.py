"""Prior adapters: frozen under the new one, seen by its hooks, saved, loaded and merged with it."""

import copy
import shutil

import pytest
import torch
from torch.testing import assert_close

from lora_zoo.conformance.cases import (
    MATRIX,
    UNSEEN,
    batch,
    few_cases,
    fresh,
    in_a_loop,
    inputs,
    logits,
    lone,
    mergeable,
    only,
    perturb,
    settings,
    train,
)
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.init import find_init
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def on_prior(name, kind="linear", variant="lora"):
    """A model with the variant `name` as the prior "a", away from its start, and LoRA above it."""
    model = lone(kind)
    drops = "lora_dropout" in hyperparameters(VARIANTS[name]) and kind not in UNSEEN
    init = settings(name).get("init") or VARIANTS[name].defaults.get("init", "kaiming")
    dropout = {"lora_dropout": 0.5} if drops and not find_init(init).residual else {}
    first = inject(model, name, target_modules=[model.target], name="a", **settings(name, 2, **dropout))
    perturb(first)
    second = inject(model, variant, target_modules=[model.target], rank=3, name="b", prior=["a"])
    return model, first, second


@in_a_loop("name, kind", mergeable(few_cases()))
def test_a_prior_stays_as_it_is_active_under_the_new_adapter(name, kind):
    model, first, second = on_prior(name, kind)
    x, kept = inputs(kind), copy.deepcopy(first.state_dict())
    assert adapters_of(model).active == ("a", "b")
    adapters_of(model).activate("a")
    alone = model.eval()(x)
    adapters_of(model).activate("b")
    assert adapters_of(model).active == ("a", "b"), "an adapter brings its priors"
    assert_close(model(x), alone, **CLOSE)
    assert_close(model.train()(x), alone, **CLOSE)  # a frozen adapter drops nothing out
    train(second, lambda: model(x).square().mean(), steps=2, total=20)
    assert all(torch.equal(t, kept[n]) for n, t in first.state_dict().items())
    assert not first.parameters() or all(p.grad is None for p in first.parameters())
    assert second.hooks.prior["a"] is first.adapters
    model.eval()
    adapter, host = only(second)
    (update,) = second
    assert_close(update.dW_OI, adapter.weight(host.matrix()) - host.matrix(), **CLOSE)
    with second.disabled():
        assert torch.equal(model(x), alone)
    together = model(x)
    assert not torch.allclose(together, alone)
    if first.variant.pointwise:
        second.merge()
        assert_close(model(x), together, **CLOSE)
        second.unmerge()
    second.remove()
    assert adapters_of(model).active == ("a",) and torch.equal(model(x), alone)


@pytest.mark.parametrize("name", MATRIX)
def test_a_saved_adapter_brings_its_priors(name, tmp_path):
    model, _, second = on_prior(name)
    perturb(second)
    x, expected = inputs("linear"), model.eval()(inputs("linear"))
    save_adapter(second, tmp_path / "b")
    other = lone("linear").eval()
    loaded = load_adapter(other, tmp_path / "b")
    assert loaded.prior == ("a",) and adapters_of(other).active == ("a", "b")
    assert torch.equal(other(x), expected)
    load_adapter(other, tmp_path / "b", name="again")
    assert list(adapters_of(other)) == ["a", "b", "again"], "one prior serves both"
    assert torch.equal(other(x), expected)


def test_priors_of_priors_come_as_well(tmp_path):
    model, _, _ = on_prior("dora")
    third = inject(model, "lora", target_modules=["layer"], rank=2, name="c", prior=["b"])
    perturb(third)
    assert adapters_of(model).active == ("a", "b", "c")
    x = inputs("linear")
    save_adapter(third, tmp_path / "c")
    other = lone("linear")
    load_adapter(other, tmp_path / "c")
    assert torch.equal(other(x), model(x)) and adapters_of(other).active == ("a", "b", "c")
    adapters_of(other).activate("c", weights=[0.5])
    half = other(x)
    adapters_of(other).activate("b")
    below = other(x)
    assert_close(half - below, 0.5 * (model(x) - below), **CLOSE)


def test_what_cannot_be_with_priors_is_refused_in_one_line(tmp_path):
    model, first, second = on_prior("lora")
    with pytest.raises(ValueError, match=r"prior: unknown adapter 'c'\. .*Choices: a, b"):
        inject(model, "lora", target_modules=["layer"], name="d", prior=["c"])
    assert list(adapters_of(model)) == ["a", "b"]
    with pytest.raises(ValueError, match="'a' is a prior of b"):
        first.remove()
    with pytest.raises(ValueError, match=r"trained on a and means nothing alone.*lora_zoo\.merge"):
        save_peft(second, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
    save_adapter(second, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "prior")
    other = lone("linear")
    with pytest.raises(ValueError, match=r"prior/a is not the adapter on which that of .*b was trained"):
        load_adapter(other, tmp_path / "b")
    only(first)[0].B_OR.data.add_(1)
    save_adapter(first, tmp_path / "b" / "prior" / "a")
    with pytest.raises(ValueError, match="is not the adapter on which"):
        load_adapter(other, tmp_path / "b")
    assert not adapters_of(other) and torch.equal(other(inputs("linear")), lone("linear")(inputs("linear")))


def test_another_adapter_of_a_prior_s_name_is_not_taken_for_it(tmp_path):
    model, _, second = on_prior("lora")
    save_adapter(second, tmp_path / "b")
    other = lone("linear")
    perturb(inject(other, "lora", target_modules=["layer"], rank=2, name="a"), seed=9)
    before = other(inputs("linear"))
    with pytest.raises(ValueError, match="another adapter called 'a', which is its prior's name"):
        load_adapter(other, tmp_path / "b")
    assert list(adapters_of(other)) == ["a"] and torch.equal(other(inputs("linear")), before)
    assert model is not other


def test_statistics_are_those_of_the_model_with_its_priors():
    model, _ = fresh("llama")
    perturb(inject(model, "lora", rank=2, target_modules=["q", "v"], name="a"))
    expected = logits(model, "llama")
    asked = {"rank": 2, "init": "lora_ga", "target_modules": ["q", "v"], "batches": [batch("llama")]}
    above = inject(model, "lora", **asked, name="b", prior=["a"])
    alone = inject(fresh("llama")[0], "lora", **asked)
    pairs = zip(above.adapters.values(), alone.adapters.values(), strict=True)
    assert any(not torch.allclose(mine.A_RI, theirs.A_RI) for mine, theirs in pairs)
    assert_close(logits(model, "llama"), expected, rtol=1e-4, atol=1e-4)
