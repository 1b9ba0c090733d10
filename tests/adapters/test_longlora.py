"""LongLoRA: S²-Attn against attention in rolled groups, causality by perturbation, what trains, refusals.

Shapes: B samples, H heads, T tokens, D a head's width, G tokens of a group.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BartConfig, BartForConditionalGeneration

from lora_zoo.config import command_line, compose
from lora_zoo.config.schema import register
from lora_zoo.conformance.cases import batch, fresh, perturb
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import inject
from lora_zoo.pocket import HUB
from lora_zoo.training.experiment import target_arguments
from lora_zoo.variants.additive.longlora import together
from tests.adapters.test_hiddenkey import flash, mamba, mpt

register()
AT = Progress(1, 10)


LORA_PLUS = ["all-embeddings", "all-norms"]


def adapted(kind="llama", attention="sdpa", **hyper):
    """A model in training mode without dropout of its own, and its adapter."""
    model = (AutoModelForCausalLM.from_pretrained(HUB) if kind == "pocket" else fresh(kind)[0]).double()
    model.set_attn_implementation(attention)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    injection = inject(model, "longlora", target_modules=["q", "v"], modules_to_save=LORA_PLUS, **hyper)
    perturb(injection, 0.1)
    return model.train(), injection


def tokens(count):
    return torch.randint(1, 20, (2, count), generator=torch.Generator().manual_seed(3))


# 8 tokens in 2 groups; a token sees the marked ones of its row. First half of the heads: 0-3 and 4-7; second,
# half a group later: 0-1, 2-5 and 6-7.
PLAIN = """
x.......
xx......
xxx.....
xxxx....
....x...
....xx..
....xxx.
....xxxx"""
SHIFTED = """
x.......
xx......
..x.....
..xx....
..xxx...
..xxxx..
......x.
......xx"""


def test_two_groups_of_eight_tokens_by_hand():
    model, injection = adapted(attention="eager", group_size_ratio=0.5)
    full_BHTT = model(tokens(8), output_attentions=True).attentions[0]
    with injection.hooks.forward_context(AT):
        found_BHTT = model(tokens(8), output_attentions=True).attentions[0]
    assert found_BHTT.shape[1] == 4
    for head, picture in enumerate((PLAIN, PLAIN, SHIFTED, SHIFTED)):
        seen_TT = torch.tensor([[c == "x" for c in row] for row in picture.split()])
        left_BTT = full_BHTT[:, head] * seen_TT
        assert_close(found_BHTT[:, head], left_BTT / left_BTT.sum(-1, keepdim=True))


def rolled(q_BHTD, k_BHTD, v_BHTD, G, apart):
    """S²-Attn as the paper's algorithm has it: roll half of the heads, attend in groups, roll back.

    Where `apart`, the two halves of the group that is rolled around do not see each other.
    """
    _, H, T, _ = q_BHTD.shape

    def grouped(x_BHTD, by):
        x_BHTD = torch.cat([x_BHTD[:, : H // 2], x_BHTD[:, H // 2 :].roll(by, 2)], 1)
        return x_BHTD.unflatten(2, (T // G, G))

    q, k, v = (grouped(x_BHTD, -(G // 2)) for x_BHTD in (q_BHTD, k_BHTD, v_BHTD))
    seen = torch.ones(G, G).tril().bool().repeat(H, T // G, 1, 1)
    if apart:
        seen[H // 2 :, -1, G - G // 2 :, : G - G // 2] = False
    y_BHTD = F.scaled_dot_product_attention(q, k, v, seen).flatten(2, 3)
    return torch.cat([y_BHTD[:, : H // 2], y_BHTD[:, H // 2 :].roll(G // 2, 2)], 1)


def test_lengths_that_groups_do_not_divide_and_one_group():
    _, injection = adapted(group_size_ratio=0.25)
    ones = torch.ones(()).expand(1, 2, 10, 10)
    sizes = [found_TT.sum(-1).unique_consecutive().tolist() for found_TT in injection.hooks._grouped(ones)]
    assert sizes == [[3, 1], [1, 3]], "groups of 3 3 3 1, and of 1 3 3 3"
    assert together(2, 4, 4).all()


@pytest.mark.parametrize("G", [4, 6, 12])
def test_the_mask_is_the_papers_rolling_without_its_leak(G):
    B, H, T, D = 2, 4, 24, 3
    source = torch.Generator().manual_seed(0)
    x = [torch.randn(B, H, T, D, generator=source, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    seen_HTT = together(H, T, G) & torch.ones(T, T).tril().bool()
    found = F.scaled_dot_product_attention(*x, seen_HTT)
    expected = rolled(*x, G, apart=True)
    assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
    for pair in zip(ours, theirs, strict=True):
        assert_close(*pair)
    leaks = torch.autograd.grad(rolled(*x, G, apart=False)[:, :, 0].sum(), x[2])[0]
    assert leaks[:, H // 2 :, -1].any() and not leaks[:, : H // 2, -1].any(), (
        "what the eager code lets through"
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_one_group_is_full_attention_and_so_is_use(kind):
    ids = batch(kind)["input_ids"]
    model, injection = adapted(kind, group_size_ratio=1.0)
    with injection.hooks.forward_context(AT):
        assert torch.equal(model(ids).logits, model.eval()(ids).logits)
    model, injection = adapted(kind, group_size_ratio=0.5)
    plain = model(ids).logits
    with injection.hooks.forward_context(AT):
        assert not torch.allclose(model(ids).logits, plain)
        assert torch.equal(model.eval()(ids).logits, plain)
    assert torch.equal(model.train()(ids).logits, plain)


@pytest.mark.parametrize("count", [8, 11])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "pocket"])
def test_a_later_token_changes_no_earlier_logit_in_training(kind, count):
    model, injection = adapted(kind)
    ids = tokens(count)
    with injection.hooks.forward_context(AT), torch.no_grad():
        before = model(ids).logits
        for place in (1, count // 2, count - 1):
            other = ids.clone()
            other[:, place] += 1
            after = model(other).logits
            assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-12)
            assert not torch.allclose(after[:, place], before[:, place])


def test_gradients_are_the_slope_of_the_loss_in_groups():
    model, injection = adapted("gpt2")  # which computes in float64 throughout
    step = [torch.randn_like(p) for p in injection.parameters()]

    def loss():
        return model(tokens(12)).logits.square().mean()

    with injection.hooks.forward_context(AT):
        found = torch.autograd.grad(loss(), injection.parameters())
        ends = []
        for sign in (1, -2):
            for p, d in zip(injection.parameters(), step, strict=True):
                p.data += sign * 1e-6 * d
            ends.append(float(loss().detach()))
    slope = sum(float((g * d).sum()) for g, d in zip(found, step, strict=True))
    assert_close(torch.tensor(slope), torch.tensor((ends[0] - ends[1]) / 2e-6), rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("error:.*is tied to")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "pocket"])
def test_embeddings_and_norms_train_and_are_counted_once(kind):
    model, injection = adapted(kind, rank=2)
    config = model.config
    embeddings = {name for name in injection.fully_trained if "norm" not in name and "ln_" not in name}
    assert (
        embeddings == {"llama": {"model.embed_tokens.weight"}}.get(kind, embeddings) and len(embeddings) == 1
    )
    sizes = {name: p.numel() for name, p in injection.trained.items()}
    assert {sizes[name] for name in embeddings} == {config.vocab_size * config.hidden_size}
    adapters = sum(
        2 * (p.shape[0] + p.shape[1]) for p in (m.host.matrix() for m in injection.matrices.values())
    )
    norms = {"llama": 5, "gpt2": 10}.get(kind, 2 * config.num_hidden_layers + 1) * config.hidden_size
    assert injection.trainable() == adapters + config.vocab_size * config.hidden_size + norms
    if config.tie_word_embeddings:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_kinds_of_modules_to_save_mean_the_same_on_every_architecture(kind):
    model = fresh(kind)[0]
    injection = inject(model, "lora", target_modules="q", modules_to_save=["all-norms"])
    norms = [n for n, m in model.named_modules() if "Norm" in type(m).__name__]
    assert injection.fully_trained == [
        f"{n}.{own}" for n in norms for own, _ in model.get_submodule(n).named_parameters()
    ]
    plain = nn.Sequential(nn.Linear(4, 4))
    for word in LORA_PLUS:
        with pytest.raises(ValueError, match=f"{word}: the model has none"):
            inject(plain, "lora", target_modules=".*", modules_to_save=[word])


def test_a_run_trains_them_beside_the_heads_that_the_checkpoint_lacks():
    (settings,) = compose.check(command_line.rewritten(["variant=longlora"]), multirun=False)
    assert target_arguments(settings, ["score"])["modules_to_save"] == ["score", *LORA_PLUS]
    assert target_arguments(settings, [])["modules_to_save"] == LORA_PLUS


def bart():
    config = dict(d_model=16, vocab_size=37, encoder_layers=1, decoder_layers=1)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20)
    return BartForConditionalGeneration(BartConfig(**config, **heads))


@pytest.mark.parametrize(
    ("make", "target", "says"),
    [
        (flash, "q", r"cannot group the tokens: model.layers.0.self_attn is computed by flash_attention_2"),
        (mpt, "Wqkv", r"attn.Wqkv takes no mask.*group_size_ratio=1"),
        (mamba, "in_proj", r"the model has no attention of transformers'; use variant.group_size_ratio=1"),
        (bart, "q", r"the model attends to another: use variant.group_size_ratio=1"),
    ],
)
def test_attention_that_cannot_be_grouped_is_refused_before_training(make, target, says):
    injection = inject(make(), "longlora", target_modules=target)
    with pytest.raises(ValueError, match=says) as error:
        injection.hooks.on_train_begin(10)
    assert "\n" not in str(error.value)
    inject(make(), "longlora", target_modules=target, group_size_ratio=1.0).hooks.on_train_begin(10)


@pytest.mark.parametrize("ratio", [0.0, 1.5, -0.25])
def test_a_group_is_a_part_of_the_text(ratio):
    with pytest.raises(ValueError, match=r"group_size_ratio must lie in \(0, 1\]"):
        inject(fresh("llama")[0], "longlora", target_modules="q", group_size_ratio=ratio)
