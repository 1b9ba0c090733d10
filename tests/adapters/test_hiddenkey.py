"""HiddenKey: masked attention against attention by hand, the KL against autograd, refusals.

Shapes: B samples, H heads, Q queries, K keys, T tokens, C classes.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from lora_zoo.conformance.cases import SIZES, batch, fresh, perturb
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.attention import renormalised
from lora_zoo.injection.inject import inject
from lora_zoo.pocket import HUB
from tests.test_cli import MINILM

AT = Progress(1, 10)
KINDS = ("llama", "bert", "gpt2", "pocket") + (("minilm",) if MINILM else ())


def loaded(kind):
    if kind == "pocket":
        return AutoModelForCausalLM.from_pretrained(HUB)
    if kind == "minilm":
        return AutoModel.from_pretrained(Path(MINILM.origin).parent / "model")
    return fresh(kind)[0]


def adapted(kind, attention="sdpa", **hyper):
    """A model in training mode without dropout of its own, and its adapter."""
    model = loaded(kind).double()
    model.set_attn_implementation(attention)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    injection = inject(model, "hiddenkey", target_modules=["q", "v"], **hyper)
    perturb(injection, 0.1)
    return model.train(), injection


def weights(kind, attention_mask=None, **hyper):
    """Attention (B, H, Q, K) of the first layer, without and with dropped keys."""
    model, injection = adapted(kind, "eager", hidden_dropout=0.0, **hyper)
    ask = partial(model, batch(kind)["input_ids"], attention_mask=attention_mask, output_attentions=True)
    plain = ask().attentions[0]
    with injection.hooks.forward_context(AT):
        return plain.detach(), ask().attentions[0].detach()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_column_gets_nothing_and_the_others_renormalise(kind, padded):
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6]) if padded else None
    plain_BHQK, found_BHQK = weights(kind, mask, key_dropout=0.5)
    last_BHK = plain_BHQK[:, :, -1] > 0  # the last query sees whatever any query sees
    dropped_BH1K = (last_BHK & (found_BHQK[:, :, -1] == 0))[:, :, None]
    left_BHQK = plain_BHQK.masked_fill(dropped_BH1K, 0)
    sum_BHQ1 = left_BHQK.sum(-1, keepdim=True)
    expected_BHQK = torch.where(sum_BHQ1 > 0, left_BHQK / sum_BHQ1, plain_BHQK)
    assert_close(found_BHQK, expected_BHQK)
    assert torch.equal(found_BHQK == 0, expected_BHQK == 0), "exactly 0, or exactly as it was"
    assert 0.15 < float(dropped_BH1K.double().mean()) < 0.75
    for pair in (dropped_BH1K[:2], dropped_BH1K.transpose(0, 1)[:2]):
        assert not torch.equal(*pair), "each sample and each head has its own"


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_keeps_its_own_keys_where_all_would_go(kind):
    plain_BHQK, found_BHQK = weights(kind, key_dropout=0.99)
    assert_close(found_BHQK.sum(-1), torch.ones_like(found_BHQK[..., 0]))
    assert not found_BHQK[plain_BHQK == 0].any(), "a query looks at what it must not see"


PACKED = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(3, 6)}
PADDED = {"attention_mask": torch.tensor([[1] * 6, [0] * 2 + [1] * 4, [1] * 6])}


@pytest.mark.parametrize("given", [{}, PACKED, PADDED], ids=["plain", "packed", "padded"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sdpa_and_eager_drop_the_same_whatever_the_mask(kind, given):
    """DropKey's logits, and DropAttention's weights, which have one output."""
    found = []
    for attention, position in (("eager", "logits"), ("sdpa", "logits"), ("sdpa", "weights")):
        model, injection = adapted(kind, attention, key_dropout=0.4, key_position=position)
        with injection.hooks.forward_context(AT):
            found.append(model.float()(batch(kind)["input_ids"], **given).logits)  # eager needs float32 here
    seen = given.get("attention_mask", torch.ones(3, 6)).bool()
    for other in found[1:]:
        assert_close(found[0][seen], other[seen], rtol=1e-4, atol=1e-5)
        assert other.isfinite().all()


@pytest.mark.parametrize("structure", ["element", "column", "span"])
@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_dropattention_is_dropkey_in_the_forward_pass(kind, structure):
    """C-54: weights that are left over their sum are the softmax of the logits that are left."""
    found = {}
    for position in ("logits", "weights"):
        for attention in ("eager", "sdpa"):
            hyper = {"key_position": position, "key_structure": structure, "hidden_dropout": 0.0}
            model, injection = adapted(kind, attention, key_dropout=0.4, **hyper)
            with injection.hooks.forward_context(AT):
                found[position, attention] = model.float()(batch(kind)["input_ids"])[0]
            assert model.config._attn_implementation == attention
            assert not torch.allclose(model(batch(kind)["input_ids"])[0], found[position, attention])
    for other in found.values():
        assert_close(other, found["logits", "eager"], rtol=1e-4, atol=1e-5)


def test_dropattention_s_sum_gets_no_gradient():
    """d/dg of m w / NoGrad(Σ m w), w = softmax(g): the Jacobian diag(u) - u wᵀ, where DropKey's has u uᵀ."""
    g_K = torch.tensor([0.3, -1.0, 0.7, 0.2], dtype=torch.float64)
    left_K = torch.tensor([True, False, True, True])
    ours = torch.autograd.functional.jacobian(lambda g: renormalised(g.softmax(-1), left_K), g_K)
    w_K = g_K.softmax(-1)
    u_K = w_K * left_K / (w_K * left_K).sum()
    assert_close(ours, u_K.diag() - torch.outer(u_K, w_K))
    assert_close(u_K[left_K], g_K[left_K].softmax(-1))
    assert float(ours[0, 1].abs()) > 0.02, "a dropped key's logit gets a gradient, which DropKey's does not"


@pytest.mark.parametrize("structure", ["element", "span"])
def test_a_recomputed_layer_drops_the_same(structure):
    found = []
    for checkpointed in (False, True):
        hyper = {"key_position": "weights", "key_structure": structure, "hidden_structure": structure}
        model, injection = adapted("llama", key_dropout=0.4, hidden_dropout=0.4, **hyper)
        if checkpointed:
            model.activation_checkpointing_enable()
        with injection.hooks.forward_context(AT):
            model(**batch("llama")).loss.backward()
        assert model.config._attn_implementation == "sdpa"
        found.append([p.grad for p in injection.parameters()])
    assert_close(*found)


@pytest.mark.parametrize("position", ["logits", "weights"])
@pytest.mark.parametrize(("structure", "of_queries"), [("element", True), ("column", False), ("span", False)])
def test_the_structures_of_dropped_keys(position, structure, of_queries):
    """In a bidirectional model a query sees all 6 keys: a span of ⌈0.4 · 6⌉ is 3 neighbours."""
    hyper = {"key_dropout": 0.4, "key_structure": structure, "key_position": position}
    _, found_BHQK = weights("bert", **hyper)
    gone_BHQK = found_BHQK == 0
    assert bool((gone_BHQK != gone_BHQK[:, :, :1]).any()) == of_queries
    assert_close(found_BHQK.sum(-1), torch.ones_like(found_BHQK[..., 0]))
    if structure == "span":
        assert (gone_BHQK.sum(-1) == 3).all()
        assert ((gone_BHQK[..., 1:] != gone_BHQK[..., :-1]).sum(-1) <= 2).all(), "not neighbours"
        assert len({tuple(row) for row in gone_BHQK[:, :, 0].flatten(0, 1).tolist()}) > 1


@pytest.mark.parametrize(("structure", "scale"), [("element", 1 / 0.7), ("column", 1 / 0.7), ("span", 6 / 4)])
def test_the_structures_of_dropped_hidden_values(structure, scale):
    """A span of ⌈0.3 · 6⌉ is 2 of the 6 tokens."""
    model, injection = adapted("llama", key_dropout=0.0, hidden_dropout=0.3, hidden_structure=structure)
    seen, down = [], model.model.layers[0].mlp.down_proj
    down.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    model(batch("llama")["input_ids"])
    with injection.hooks.forward_context(AT):
        handle = down.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        for _ in range(60):
            model(batch("llama")["input_ids"])
        handle.remove()
    plain_BTF, every = seen[0], torch.stack(seen[2::2])
    kept = every != 0
    assert_close(every, plain_BTF * kept * scale, rtol=1e-4, atol=1e-9)  # p is rounded to 16 bits
    whole = {"element": kept, "column": kept[:, :, :1], "span": kept[..., :1]}[structure]
    assert torch.equal(kept, whole.expand_as(kept))
    assert abs(float((~kept).double().mean()) - (1 / 3 if structure == "span" else 0.3)) < 0.03
    if structure == "span":
        gone = ~kept[..., 0]
        assert (gone.sum(-1) == 2).all() and ((gone[..., 1:] != gone[..., :-1]).sum(-1) <= 2).all()
        assert gone.any(0).all() and len({tuple(row) for row in gone.flatten(0, 1).tolist()}) == 5
    else:
        assert not torch.equal(kept[:, 0], kept[:, 1]), "each sample has its own"


@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_and_after_a_step_nothing_is_dropped(kind):
    model, injection = adapted(kind, key_dropout=0.5, hidden_dropout=0.5)

    def ask():
        return model(batch(kind)["input_ids"])[0].detach()

    plain = ask()
    with injection.hooks.forward_context(AT):
        assert not torch.allclose(ask(), plain)
        model.eval()
        assert torch.equal(ask(), plain)
        model.train()
    assert torch.equal(ask(), plain)


def kl(logits, others):
    """KL(p ‖ q) by torch's own function, summed."""
    return F.kl_div(others.log_softmax(-1), logits.log_softmax(-1), reduction="sum", log_target=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_extra_and_its_gradient_are_those_of_the_symmetric_kl(kind):
    model, injection = adapted(kind, key_dropout=0.3, kl_weight=2.5)
    given, passes = batch(kind), []
    if kind != "bert":
        given["labels"] = given["labels"].clone()
        given["labels"][0, :3] = -100

    def once():
        passes.append(model(**given))
        return passes[-1].loss, passes[-1]

    with injection.hooks.forward_context(AT):
        loss, outputs, extra = injection.hooks.objective(once, AT)
    first, second = (p.logits for p in passes)
    assert not torch.equal(first, second) and outputs is passes[0]
    assert_close(loss, (passes[0].loss + passes[1].loss) / 2)
    count = 3
    if kind != "bert":
        judged = given["labels"][:, 1:] != -100
        first, second = first[:, :-1][judged], second[:, :-1][judged]
        count = int(judged.sum())
    by_hand = 2.5 * (kl(first, second) + kl(second, first)) / 2 / count
    assert_close(extra, by_hand)
    gradients = [
        torch.autograd.grad(value, injection.parameters(), retain_graph=True, allow_unused=True)
        for value in (extra, by_hand)
    ]
    reached = [pair for pair in zip(*gradients, strict=True) if pair[1] is not None]
    assert len(reached) >= 4
    for ours, theirs in reached:
        assert_close(ours, theirs)


def test_without_any_dropout_both_passes_are_one_and_without_kl_there_is_one():
    for hyper, calls in (({"kl_weight": 1.0}, 2), ({"kl_weight": 0.0}, 1)):
        model, injection = adapted("llama", key_dropout=0.0, hidden_dropout=0.0, **hyper)
        passes = []

        def once(model=model, passes=passes):
            passes.append(model(**batch("llama")))
            return passes[-1].loss, passes[-1]

        with injection.hooks.forward_context(AT):
            loss, _, extra = injection.hooks.objective(once, AT)
        assert len(passes) == calls
        assert float(torch.as_tensor(extra).detach()) == 0.0 and torch.equal(loss, passes[0].loss)


def flash():
    model = fresh("llama")[0]
    model.config._attn_implementation = "flash_attention_2"
    return model


def mpt():
    return MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=37))


def mamba():
    return MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=37))


def regression():
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=1))


@pytest.mark.parametrize(
    ("make", "target", "says"),
    [
        (flash, "q", r"model.layers.0.self_attn is computed by flash_attention_2.*variant.key_dropout=0"),
        (mpt, "Wqkv", r"the attention of transformer.blocks.0.attn.Wqkv takes no mask.*key_dropout=0"),
        (mamba, "in_proj", r"the model has no attention of transformers'; use variant.key_dropout=0"),
        (regression, "q", r"a regression has no distribution; use variant.kl_weight=0"),
    ],
)
def test_what_cannot_be_reached_is_refused_before_training(make, target, says):
    injection = inject(make(), "hiddenkey", target_modules=target)
    with pytest.raises(ValueError, match=says) as error:
        injection.hooks.on_train_begin(10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"key_dropout": 1.0}, r"key_dropout must lie in \[0, 1\); got 1.0"),
        ({"hidden_dropout": -0.1}, r"hidden_dropout must lie in \[0, 1\); got -0.1"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more; got -1.0"),
    ],
)
def test_what_means_nothing_is_refused(hyper, says):
    with pytest.raises(ValueError, match=says):
        inject(fresh("llama")[0], "hiddenkey", target_modules="q", **hyper)
