"""What every variant, baselines included, promises on a whole model."""

import copy

import pytest
import torch
from torch.testing import assert_close

from lora_zoo.conformance.cases import (
    MATRIX,
    MODELS,
    batch,
    fresh,
    logits,
    on_models,
    perturb,
    settings,
    train,
)
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.inject import inject
from lora_zoo.injection.matrices import find_matrices

pytestmark = [
    pytest.mark.parametrize(("name", "kind"), on_models(MODELS)),
    pytest.mark.filterwarnings("ignore:.*tied.*"),
]


def adapted(name, kind, **more):
    model, where = fresh(kind)
    return model, inject(model, name, **where, **settings(name, 2, **more))


def trained(name, kind, steps=3):
    model, injection = adapted(name, kind)
    train(injection, lambda: model(**batch(kind)).loss, steps=steps, total=10 * steps)
    return model, injection


def named(model):
    return dict(model.named_parameters(remove_duplicate=False))


def has_these_updates(updates, plain, model, injection):
    """The merged `model` differs from the `plain` one by each of the updates."""
    before, after = ({p.name: p.host.matrix() for p in find_matrices(m)} for m in (plain, model))
    for update in updates:
        natural = update.name in injection.adapters
        if not natural and update.name.rpartition(".")[2] == "embeddings":
            continue
        W_OI, after_OI = (
            known[update.name] if natural else m.get_submodule(update.name).weight
            for known, m in ((before, plain), (after, model))
        )
        assert torch.equal(update.W_OI, W_OI)
        assert_close(update.dW_OI, (after_OI - W_OI).detach(), rtol=1e-5, atol=1e-6)
        assert update.dW_OI.any() and not update.dW_OI.requires_grad


def test_function_is_unchanged_at_step_0(name, kind):
    expected = logits(fresh(kind)[0], kind)
    model, injection = adapted(name, kind)
    if VARIANTS[name].virtual_tokens(injection.hyper):
        assert not torch.allclose(logits(model, kind), expected)
        return
    atol = 1e-5 if VARIANTS[name].identity_at_start else 1e-2
    assert_close(logits(model, kind), expected, rtol=1e-5, atol=atol)


def test_every_trainable_parameter_is_in_one_group_and_decays_only_as_it_should(name, kind):
    """What trains in full decays where it is a matrix."""
    model, injection = adapted(name, kind)
    groups = injection.param_groups(lr=1e-3, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups)
    assert decay.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    assert decay.keys() == {id(p) for p in injection.parameters()}
    for parameter_name in injection.fully_trained:
        parameter = model.get_parameter(parameter_name)
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)
    if name in MATRIX:
        with pytest.raises(ValueError, match="adapted already"):
            inject(model, name, **MODELS[kind][1])


def test_a_trained_adapter_is_disabled_unmerged_and_loaded_bit_for_bit(name, kind, tmp_path):
    expected = logits(fresh(kind)[0], kind)
    model, injection = trained(name, kind)
    after, before = logits(model, kind), copy.deepcopy(model.state_dict())
    with injection.disabled():
        assert torch.equal(logits(model, kind), expected)
    assert torch.equal(logits(model, kind), after)
    with pytest.raises(KeyError), injection.disabled():
        raise KeyError
    assert torch.equal(logits(model, kind), after)
    if VARIANTS[name].pointwise:
        injection.merge()
        injection.unmerge()
    assert torch.equal(logits(model, kind), after)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    save_adapter(injection, tmp_path, base=kind)
    other, _ = fresh(kind)
    loaded = load_adapter(other, tmp_path)
    assert torch.equal(logits(other, kind), after)
    assert loaded.named_parameters().keys() == injection.named_parameters().keys()
    with loaded.disabled():
        assert torch.equal(logits(other, kind), expected)


def test_a_merged_model_is_the_adapted_one_and_has_the_changes_that_were_told(name, kind):
    if not VARIANTS[name].pointwise:
        pytest.skip("has no effective weight")
    plain, _ = fresh(kind)
    model, injection = trained(name, kind)
    perturb(injection, 0.05)
    expected, updates = logits(model, kind), list(injection)
    changed = list(injection.adapters) if VARIANTS[name].changes_weight else []
    assert [u.name for u in updates][: len(changed)] == changed
    with_matrix = [n for n in injection.fully_trained if model.get_parameter(n).ndim == 2]
    assert len(updates) == len(changed) + len(with_matrix)
    injection.merge()
    has_these_updates(updates, plain, model, injection)
    assert injection.remove() is model
    assert_close(logits(model, kind), expected, rtol=1e-4, atol=1e-5)
    gained = named(model).keys() ^ named(plain).keys()
    assert not gained or (VARIANTS[name].adds_bias and {n.rpartition(".")[2] for n in gained} == {"bias"})
    assert all(p.requires_grad for p in model.parameters())


def test_training_moves_what_is_declared_and_removal_restores_the_model_bit_for_bit(name, kind):
    plain, _ = fresh(kind)
    model, where = fresh(kind)
    for holder in (plain, model):
        next(iter(holder.parameters())).requires_grad_(False)
    objects = {n: id(p) for n, p in named(model).items()}
    injection = inject(model, name, **where, **settings(name, 2))
    declared = {id(p) for p in injection.parameters()}
    before = {n: t.detach().clone() for n, t in model.named_parameters()}
    fixed = {n: t.clone() for n, t in model.named_buffers()}
    train(injection, lambda: model(**batch(kind)).loss, steps=3, total=40)
    moved = {n for n, t in model.named_parameters() if not torch.equal(t, before[n])}
    assert moved == {n for n, t in model.named_parameters() if id(t) in declared}
    assert all(torch.equal(t, fixed[n]) for n, t in model.named_buffers())
    assert injection.trainable() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    injection.remove()
    assert {n: id(p) for n, p in named(model).items()} == objects, "weights are tied otherwise than before"
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.config.tie_word_embeddings == plain.config.tie_word_embeddings
    assert not model._forward_pre_hooks
    inject(model, name, **where, **settings(name, 2))
