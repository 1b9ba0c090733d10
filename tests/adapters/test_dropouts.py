"""Members that drop something while they train: LoRA Dropout's masks and its ensemble, R-Drop.

Shapes: O out, I in, R rank.
"""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import T5Config, T5ForConditionalGeneration

from lora_zoo.conformance.cases import batch, fresh, inputs, lone, only, perturb, train
from lora_zoo.core.hooks import Progress
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.inject import inject
from lora_zoo.variants.two_passes import jensen_shannon, symmetric_kl

AT = Progress(1, 10)
MASKS = "lora_dropout_masks"


def masked(**hyper):
    """(model, injection, adapter) of one linear layer (10, 14) in training mode."""
    model = lone("linear")
    injection = inject(model, MASKS, target_modules="layer", rank=4, alpha=6.0, **hyper)
    perturb(injection)
    return model, injection, only(injection)[0]


def updates(model, injection, passes):
    """ΔW (O, I) of each of so many training passes, read off the outputs at the unit vectors."""
    x = torch.eye(14, dtype=torch.float64)
    with torch.no_grad():
        base = model.layer.layer(x)
        with injection.hooks.forward_context(AT):
            return torch.stack([(model(x) - base).T for _ in range(passes)])


def test_a_training_pass_drops_whole_rows_and_columns_and_no_rank():
    model, injection, adapter = masked(mask_dropout=0.25)
    for dW_OI in updates(model, injection, 5):
        kept_O, kept_I = dW_OI.any(1).double(), dW_OI.any(0).double()
        plain_OI = 1.5 * adapter.B_OR @ adapter.A_RI
        assert_close(dW_OI, torch.outer(kept_O, kept_I) * plain_OI.detach() / 0.75**2)
        assert torch.linalg.matrix_rank(dW_OI) == min(4, int(kept_O.sum()), int(kept_I.sum()))


def test_the_masks_are_drawn_anew_with_p_and_their_mean_is_the_whole_model():
    """§4.1: an entry of ΔW is gone with probability 2p - p²."""
    p, passes = 0.25, 2000
    model, injection, adapter = masked(mask_dropout=p)
    every = updates(model, injection, passes)
    gone = (every == 0).double().mean(0)
    assert_close(gone, torch.full_like(gone, 2 * p - p**2), rtol=0, atol=0.06)
    assert abs(float(gone.mean()) - (2 * p - p**2)) < 0.015
    whole_OI = (adapter.weight(torch.zeros(10, 14, dtype=torch.float64))).detach()
    assert ((every.mean(0) - whole_OI).abs() < 5 * every.std(0) / passes**0.5).all()
    assert torch.equal(updates(model.eval(), injection, 1)[0], updates(model, injection, 1)[0])
    assert_close(updates(model, injection, 1)[0], whole_OI)


def test_without_masks_it_trains_as_lora_does():
    found = []
    for name, hyper in ((MASKS, {"mask_dropout": 0.0}), ("lora", {})):
        model, x = lone("linear"), inputs("linear")
        injection = inject(model, name, target_modules="layer", rank=4, **hyper)
        train(injection, lambda model=model, x=x: model(x).square().mean(), steps=5)
        found.append(model(x))
        assert not injection.hooks.views()
    assert torch.equal(*found)


def language(model=None, **hyper):
    model = model or fresh("llama")[0].double()
    injection = inject(model, MASKS, target_modules=["q", "v"], rank=4, mask_dropout=0.3, **hyper)
    perturb(injection)
    return model, injection


def test_the_loss_is_the_mean_of_the_instances_also_where_layers_are_recomputed():
    """Eq. 7."""
    gradients = []
    for checkpointed in (False, True):
        model, injection = language(instances=3)
        model.train()
        if checkpointed:
            model.activation_checkpointing_enable()
        passes = []

        def once(model=model, passes=passes):
            passes.append(model(**batch("llama")))
            return passes[-1].loss, passes[-1]

        with injection.hooks.forward_context(AT):
            loss, outputs, extra = injection.hooks.objective(once, AT)
            loss.backward()
        losses = torch.stack([p.loss for p in passes])
        assert len(passes) == 3 and len(set(losses.tolist())) == 3
        assert outputs is passes[0] and extra == 0
        assert_close(loss, losses.mean())
        gradients.append([p.grad for p in injection.parameters()])
    assert_close(*gradients)


@torch.no_grad()
def by_hand(injection, ensemble, ids):
    """Eq. 8: the mean logits of plain models with the members' matrices in them."""
    total = 0.0
    for member in range(ensemble):
        plain = fresh("llama")[0].double()
        for name, adapter in injection.adapters.items():
            A_RI = adapter.A_RI * adapter.lasting(member, "A", adapter.A_RI.new_ones(adapter.A_RI.shape[1]))
            B_RO = adapter.B_OR.T * adapter.lasting(member, "B", adapter.B_OR.new_ones(len(adapter.B_OR)))
            plain.get_submodule(name).weight += adapter.scale * B_RO.T @ A_RI
        total = total + plain(ids).logits
    return total / ensemble


@torch.no_grad()
def test_the_ensemble_is_the_mean_of_models_with_lasting_masks():
    model, injection = language(ensemble=3)
    ids = batch("llama")["input_ids"]
    whole, cached = model(ids).logits, model.generation_config.use_cache
    with injection.hooks.views()["ensemble=3"]:
        judged = model(**batch("llama"))
        assert_close(judged.logits, by_hand(injection, 3, ids))
        assert judged.loss is None, "no member's loss is the ensemble's"
        ends = {"max_new_tokens": 3, "eos_token_id": 36, "pad_token_id": 0, "do_sample": False}
        written = model.generate(ids, attention_mask=torch.ones_like(ids), **ends)
    assert not torch.allclose(judged.logits, whole)
    expected = ids
    for _ in range(3):
        next_N1 = by_hand(injection, 3, expected)[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, next_N1], dim=1)
    assert torch.equal(written, expected)
    assert torch.equal(model(ids).logits, whole) and model.generation_config.use_cache == cached


def test_members_differ_and_the_ensemble_is_neither_merged_nor_exported_nor_cached(tmp_path):
    model, injection = language(ensemble=2)
    adapter = next(iter(injection.adapters.values()))
    one = torch.ones(2000)
    found = [adapter.lasting(member, factor, one) for member in (0, 1) for factor in "AB"]
    assert not any(torch.equal(found[0], other) for other in found[1:])
    assert all(abs(float((mask == 0).double().mean()) - 0.3) < 0.05 for mask in found)
    ids = batch("llama")["input_ids"]
    with injection.hooks.views()["ensemble=2"]:
        model(ids)
        for action in (injection.merge, lambda: save_peft(injection, tmp_path / "x")):
            with pytest.raises(ValueError, match="averages its members' outputs, which no matrix does"):
                action()
        with pytest.raises(ValueError, match="past_key_values is of one member, and the ensemble has more"):
            model(ids, past_key_values=object())
    injection.merge()
    with injection.hooks.views()["ensemble=2"], pytest.raises(ValueError, match="are merged or idle"):
        model(ids)
    injection.unmerge()
    assert model(ids).logits.isfinite().all()


def test_what_cannot_be_is_refused_before_training():
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=37, d_model=16, d_kv=8, d_ff=16, num_layers=1))
    _, injection = language(t5)
    with pytest.raises(ValueError, match=r"an encoder-decoder generates .* use variant.ensemble=0"):
        injection.hooks.on_train_begin(10)
    injection.remove()
    language(t5, ensemble=0)[1].hooks.on_train_begin(10)
    for wrong, says in (
        ({"mask_dropout": 1.0}, r"mask_dropout must lie in \[0, 1\); got 1.0"),
        ({"instances": 0}, "instances must be 1 or more; got 0"),
        ({"ensemble": -1}, "ensemble must be 0 or more; got -1"),
        ({"init": "pissa"}, "pissa"),
    ):
        with pytest.raises(ValueError, match=says):
            masked(**wrong)


# --- R-Drop -------------------------------------------------------------------------------------------------


def two_passes(kind, **hyper):
    """(passes, loss, extra) of a training step of R-Drop whose only dropout is the adapters'."""
    model = fresh(kind)[0].double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    injection = inject(model, "r_drop", target_modules=["q", "v"], rank=4, **hyper)
    perturb(injection)
    model.train()
    passes = []

    def once():
        passes.append(model(**batch(kind)))
        return passes[-1].loss, passes[-1]

    with injection.hooks.forward_context(AT):
        loss, outputs, extra = injection.hooks.objective(once, AT)
    assert outputs is passes[0]
    return passes, loss, extra


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_r_drop_is_the_loss_of_its_authors_code(kind):
    """Their README: ½ (CE₁ + CE₂) + α (KL(q‖p) + KL(p‖q)) / 2, by torch's functions, here as means."""
    passes, loss, extra = two_passes(kind, lora_dropout=0.4, kl_weight=0.7)
    p, q = (run.logits if kind == "bert" else run.logits[:, :-1] for run in passes)
    labels = batch(kind)["labels"] if kind == "bert" else batch(kind)["labels"][:, 1:]
    ce = sum(F.cross_entropy(side.flatten(0, -2), labels.flatten()) for side in (p, q)) / 2
    kl = F.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="sum")
    reverse = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="sum")
    assert_close(loss + extra, ce + 0.7 * (kl + reverse) / 2 / labels.numel())
    assert float(extra.detach()) > 0


def test_r_drop_without_dropout_has_no_kl_and_without_kl_one_pass():
    """C-71."""
    passes, loss, extra = two_passes("bert", lora_dropout=0.0, kl_weight=0.7)
    assert float(extra.detach()) == 0 and torch.equal(*(run.logits for run in passes))
    assert torch.equal(loss, passes[0].loss)
    passes, loss, extra = two_passes("bert", lora_dropout=0.4, kl_weight=0.0)
    assert len(passes) == 1 and extra == 0 and loss is passes[0].loss


def test_the_divergences_of_two_coins_by_hand():
    """p = (½, ½), q = (9/10, 1/10), m = (7/10, 3/10): JS is m's entropy less the mean of theirs."""

    def entropy(*shares):
        return -sum(share * math.log(share) for share in shares)

    p, q = (torch.tensor([shares], dtype=torch.float64).log() for shares in ([0.5, 0.5], [0.9, 0.1]))
    js = entropy(0.7, 0.3) - (entropy(0.5, 0.5) + entropy(0.9, 0.1)) / 2
    assert float(jensen_shannon(p + 3, q - 2)) == pytest.approx(js, rel=1e-12)
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    reverse = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert float(symmetric_kl(p + 3, q - 2)) == pytest.approx((kl + reverse) / 2, rel=1e-12)
    apart = torch.tensor([[800.0, 0.0]], requires_grad=True)
    found = jensen_shannon(apart, -apart)
    found.backward()
    assert float(found.detach()) == pytest.approx(math.log(2)), "the most there is"
    assert apart.grad.isfinite().all()


def test_js_is_declared():
    _, _, extra = two_passes("bert", lora_dropout=0.4, divergence="js")
    passes, _, kl = two_passes("bert", lora_dropout=0.4)
    assert_close(extra, jensen_shannon(*(run.logits for run in passes)).mean())
    assert extra < kl
