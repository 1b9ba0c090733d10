"""`target_modules` by role, name, ending and pattern means the same on every architecture."""

import copy
import functools
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from torch import nn

from lora_zoo.core.variants import VARIANTS
from lora_zoo.hosts import fused
from lora_zoo.hosts.find import find_host
from lora_zoo.hosts.fused import interleaved, register_fused
from lora_zoo.injection.inject import inject
from lora_zoo.injection.roles import ROLES
from lora_zoo.injection.targets import Targets, head_names, resolve

ENCODER = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=37
)
T5 = dict(vocab_size=37, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
VIT = {**ENCODER, "image_size": 8, "patch_size": 4}
DISTILBERT = dict(vocab_size=37, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
OPT = dict(vocab_size=37, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24)

MODELS = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**ENCODER)),
    "llama_classifier": lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**ENCODER, num_labels=2, pad_token_id=0)
    ),
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**ENCODER)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**ENCODER)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(tf.DistilBertConfig(**DISTILBERT)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**OPT, word_embed_proj_dim=16)),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5)),
    "t5_gated": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**VIT)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=37, n_embd=16, n_layer=2, n_head=2)),
}
# role -> the end of its modules' names, and how many there are in two layers
ENDS = {
    "llama": {
        **{role: (f"self_attn.{role}_proj", 2) for role in "qkvo"},
        **{role: (f"mlp.{role}_proj", 2) for role in ("gate", "up", "down")},
        "embed": ("embed_tokens", 1),
        "head": ("lm_head", 1),
    },
    "bert": {
        "q": ("self.query", 2),
        "k": ("self.key", 2),
        "v": ("self.value", 2),
        "o": ("attention.output.dense", 2),
        "up": ("intermediate.dense", 2),
        "down": (".output.dense", 2),
        "embed": ("word_embeddings", 1),
        "head": ("classifier", 1),
    },
    "distilbert": {
        **{role: (f"attention.{role}_lin", 2) for role in "qkv"},
        "o": ("attention.out_lin", 2),
        "up": ("ffn.lin1", 2),
        "down": ("ffn.lin2", 2),
        "embed": ("word_embeddings", 1),
        "head": ("classifier", 1),
    },
    "opt": {
        **{role: (f"self_attn.{role}_proj", 2) for role in "qkv"},
        "o": ("self_attn.out_proj", 2),
        "up": ("fc1", 2),
        "down": ("fc2", 2),
        "embed": ("embed_tokens", 1),
        "head": ("lm_head", 1),
    },
    "t5": {
        # encoder, decoder and cross-attention
        **{role: (f"Attention.{role}", 6) for role in "qkvo"},
        "up": ("DenseReluDense.wi", 4),
        "down": ("DenseReluDense.wo", 4),
        "head": ("lm_head", 1),
    },
    "vit": {
        **{role: (f"attention.{role}_proj", 2) for role in "qkvo"},
        "up": ("mlp.fc1", 2),
        "down": ("mlp.fc2", 2),
        "head": ("classifier", 1),
    },
    "gpt2": {
        **{role: (f"attn.c_attn.{role}", 2) for role in "qkv"},
        "o": ("attn.c_proj", 2),
        "up": ("mlp.c_fc", 2),
        "down": ("mlp.c_proj", 2),
        "embed": ("wte", 1),
        "head": ("lm_head", 1),
    },
}
ENDS["llama_classifier"] = {**ENDS["llama"], "head": ("score", 1)}
ENDS["roberta"] = {**ENDS["bert"], "head": ("classifier.out_proj", 1)}
ENDS["t5_gated"] = {
    **ENDS["t5"],
    "gate": ("DenseReluDense.wi_0", 4),
    "up": ("DenseReluDense.wi_1", 4),
}


def resolved(module, *targets, **more):
    """The names of the matrices that the targets mean."""
    return [place.name for place in resolve(module, Targets(*targets, **more) if more else targets[0])]


@functools.cache
def model(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def forward(module):
    """The model's own output on a small batch."""
    ids = torch.randint(1, 37, (2, 5), generator=torch.Generator().manual_seed(1))
    if "ViT" in type(module).__name__:
        return module(pixel_values=torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))).logits
    more = {"decoder_input_ids": ids} if "T5" in type(module).__name__ else {}
    return module(input_ids=ids, **more).logits


CASES = [(kind, role) for kind, roles in ENDS.items() for role in roles]


@pytest.mark.parametrize("kind, role", CASES)
def test_a_role_means_its_layers_on_every_architecture(kind, role):
    end, count = ENDS[kind][role]
    found = resolved(model(kind), role)
    assert len(found) == count
    assert all(name.endswith(end) for name in found)


@pytest.mark.parametrize("kind", ENDS)
def test_a_switch_of_litgpt_means_its_roles_on_every_architecture(kind):
    """query, key, value, projection, mlp and head of finetune/lora.py."""
    switches = {"query": "q", "key": "k", "value": "v", "projection": "o", "head": "head"}
    for switch, roles in [*switches.items(), ("mlp", ["gate", "up", "down"])]:
        there = [role for role in (roles if switch == "mlp" else [roles]) if role in ENDS[kind]]
        if there:
            assert resolved(model(kind), f"lora_{switch}") == resolved(model(kind), there)
        else:
            with pytest.raises(ValueError, match=f"no role 'lora_{switch}'"):
                resolved(model(kind), f"lora_{switch}")


@pytest.mark.parametrize("kind", ENDS)
def test_no_layer_has_two_roles_and_a_role_that_is_absent_is_refused(kind):
    found = [name for role in ENDS[kind] for name in resolved(model(kind), role)]
    assert len(found) == len(set(found))
    absent = {role for role in ROLES if role not in ENDS[kind]} - {"embed"}
    for role in absent:
        with pytest.raises(ValueError, match=role):
            resolved(model(kind), role)


@pytest.mark.parametrize("kind", ENDS)
def test_every_role_is_used_by_the_forward_pass(kind):
    """An adapter on each layer that plays a role gets a gradient: none sits on a layer that is bypassed."""
    module = copy.deepcopy(model(kind))
    roles = [role for role in ROLES if role in ENDS[kind] or (role == "embed" and "t5" in kind)]
    injection = inject(module, "lora", target_modules=roles, rank=1)
    forward(module).square().sum().backward()
    idle = [n for n, a in injection.adapters.items() if not (a.B_OR.grad.any() or a.A_RI.grad.any())]
    assert not idle


@pytest.mark.parametrize("kind", ENDS)
def test_all_linear_is_every_linear_layer_outside_the_head(kind):
    found, module = set(resolved(model(kind), "all-linear")), model(kind)
    head = (*head_names(module), "pre_classifier")
    assert found and not [name for name in found if name.startswith(head)]
    for role in set(ENDS[kind]) - {"head", "embed"}:
        parts = [p for p in resolve(module, role) if p.whole]
        assert found.issuperset(resolved(module, role)) or all(p.whole in found for p in parts), role
    assert all((host := find_host(module.get_submodule(name))) and host.dense for name in found)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "vit", "llama_classifier"])
def test_all_linear_goes_together_with_a_head_that_trains_in_full(kind):
    module = copy.deepcopy(model(kind))
    save = [*head_names(module), *(["pre_classifier"] if kind == "distilbert" else [])]
    injection = inject(module, "lora", target_modules="all-linear", modules_to_save=save, rank=1)
    assert {name.split(".")[0] for name in injection.fully_trained} == set(save)


def test_heads_are_the_topmost_modules():
    assert head_names(model("roberta")) == ["classifier"]
    assert head_names(model("llama")) == ["lm_head"]
    assert head_names(model("llama_classifier")) == ["score"]


def test_names_endings_and_patterns_find_what_they_say():
    module = model("llama")
    one = "model.layers.1.self_attn.q_proj"
    assert resolved(module, one) == [one]
    assert resolved(module, "layers.1.self_attn.q_proj") == [one]
    assert resolved(module, ["q_proj"]) == resolved(module, "q")
    assert resolved(module, r".*layers\.1\..*(q|v)_proj") == [one, one.replace("q_proj", "v_proj")]
    assert resolved(module, r".*layers\.[01]\.mlp\.up_proj") == resolved(module, "up")


def test_the_order_is_the_model_s_and_nothing_is_found_twice():
    module = model("llama")
    assert resolved(module, ["v", "q", "q_proj", "all-linear"]) == resolved(module, "all-linear")


def test_an_ending_is_a_whole_part_of_a_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.lora_out, self.dropout = nn.Linear(2, 2), nn.Linear(2, 2), nn.Dropout()

    assert resolved(Odd(), "out") == ["out"]


@pytest.mark.parametrize(
    "target, hint",
    [
        ("q_prj", "'q_proj'"),
        ("all_linear", "'all-linear'"),
        ("up_porj", "'up_proj'"),
        ("nothing.at.all", "Choices"),
        (r"layers.*q_porj", "Choices"),
        (r"(q", "no regular expression"),
        ("input_layernorm", "no matrix"),
    ],
)
def test_a_miss_says_what_was_given_and_what_is_near(target, hint):
    with pytest.raises(ValueError) as refusal:
        resolved(model("llama"), ["q", target])
    assert target in str(refusal.value) and hint in str(refusal.value)


def test_no_target_at_all_is_refused():
    with pytest.raises(ValueError, match="empty"):
        resolved(model("llama"), [])


class Fused(nn.Module):
    """Attention that fuses q, k and v in an order of its own."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.config = SimpleNamespace(model_type="of_my_own", num_attention_heads=2)


@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_a_projection_fused_in_an_order_not_known_refuses_its_parts_until_it_is_declared(role, monkeypatch):
    monkeypatch.setattr(fused, "_LAYOUTS", dict(fused._LAYOUTS))
    switch = {"q": "lora_query", "k": "lora_key", "v": "lora_value"}[role]
    for name in (role, switch):
        with pytest.raises(ValueError, match=rf"'{name}' is fused into qkv.*target_modules=\[qkv\]"):
            resolved(Fused(), name)
    assert resolved(Fused(), "qkv") == ["qkv"]
    register_fused("of_my_own", "qkv", interleaved("num_attention_heads", v=1, q=1, k=1))
    (place,) = resolve(Fused(), role)
    first = {"v": 0, "q": 2, "k": 4}[role]
    assert place.name == f"qkv.{role}"
    assert place.host.part.tolist() == [first, first + 1, first + 6, first + 7]


class Mixed(nn.Module):
    """One layer whose q is known beside one that fuses it in an order of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.ModuleDict({"q_proj": nn.Linear(4, 4)}), Fused()


def test_a_role_that_is_known_in_some_layers_only_is_warned_of():
    with pytest.warns(UserWarning, match=r"second\.qkv may hold q as well"):
        assert list(inject(Mixed(), "lora", rank=1, target_modules=["q"]).matrices) == ["first.q_proj"]
    for meant in (
        {"exclude_modules": ["qkv"]},
        {"target_modules": ["q", "qkv"]},
        {"target_modules": ["q_proj"]},
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inject(Mixed(), "lora", rank=1, **{"target_modules": ["q"], **meant})


def test_a_fused_projection_is_adapted_whole_or_in_parts():
    module = model("gpt2")
    whole, q = "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_attn.q"
    assert resolved(module, "c_attn")[0] == whole
    assert resolved(module, "c_attn.q")[0] == resolved(module, q)[0] == q
    assert resolved(module, r".*attn\..*")[0] == whole, "what matches whole and parts means the whole"
    assert resolved(module, r".*\.0\..*c_attn\.[qv]") == [q, q[:-1] + "v"]
    assert not [name for name in resolved(module, "all-linear") if name.endswith(".q")]
    with pytest.raises(ValueError, match=f"both {whole} and its part {q}"):
        resolved(module, ["c_attn", "q"])


def test_a_model_of_convolutions_has_no_linear_layer_to_take_them_all() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="no linear layer beside its head; give names of its own: 0, 1"):
        inject(model, "lora", target_modules="all-linear")


def test_excluded_modules_stay_as_they_are():
    module = model("llama")
    assert resolved(module, ["q", "v"], exclude_modules=["v"]) == resolved(module, "q")
    assert resolved(module, "all-linear", exclude_modules=r".*\.1\..*") == resolved(
        module, r"model\.layers\.0.*_proj"
    )
    assert resolved(model("gpt2"), ["q", "v"], exclude_modules="h.0.attn.c_attn") == [
        f"transformer.h.1.attn.c_attn.{role}" for role in "qv"
    ]
    with pytest.raises(ValueError, match=r"exclude_modules: unknown target 'v_prj'\. Did you mean 'v_proj'"):
        resolved(module, "q", exclude_modules=["v_prj"])
    with pytest.raises(ValueError, match="nothing is left"):
        inject(copy.deepcopy(module), "lora", target_modules=["q"], exclude_modules=["q"])


@pytest.mark.parametrize(
    "layers, numbers",
    [(0, [0]), (-1, [1]), ("1-", [1]), ("0-1", [0, 1]), ([0, "1"], [0, 1]), (["0-0"], [0]), ("-2", [0])],
)
def test_layers_are_numbers_ranges_or_lists_of_them(layers, numbers):
    assert resolved(model("llama"), "q", layers=layers) == [
        f"model.layers.{number}.self_attn.q_proj" for number in numbers
    ]


def test_the_layers_of_an_encoder_and_a_decoder_are_their_blocks():
    found = resolved(model("t5"), "q", layers=1)
    assert len(found) == 3 and all(".block.1." in name for name in found)
    embed = model("llama").model.embed_tokens
    assert embed and not [n for n in resolved(model("llama"), ["embed", "q"], layers=0) if "embed" in n]


def test_random_layers_are_drawn_by_the_seed_in_each_stack():
    deep = tf.LlamaForCausalLM(tf.LlamaConfig(**{**ENCODER, "num_hidden_layers": 8}))
    found = [tuple(resolved(deep, "q", layers="random:3", seed=seed)) for seed in range(6)]
    assert all(len(names) == 3 for names in found) and len(set(found)) > 1
    assert found[2] == tuple(resolved(deep, "q", layers="random:3", seed=2))
    other = inject(copy.deepcopy(deep), "lora", target_modules="v", layers="random:3", seed=2)
    assert [n.replace("v_proj", "q_proj") for n in other.adapters] == list(found[2]), "a matrix moves them"
    assert resolved(deep, "q", layers="random:8") == resolved(deep, "q")
    assert len(resolved(model("t5"), "q", layers="random:1")) == 3


def test_ranks_rise_with_depth_at_an_equal_sum():
    """PRILoRA, arXiv:2401.11316: 5 layers from 2 to 6 have 2, 3, 4, 5, 6, as many as a flat rank of 4."""
    deep = tf.LlamaForCausalLM(tf.LlamaConfig(**{**ENCODER, "num_hidden_layers": 5}))

    def ranks(targets="q", **more):
        injection = inject(copy.deepcopy(deep), "lora", target_modules=targets, **more)
        return [adapter.rank for adapter in injection.adapters.values()]

    assert ranks(rank_pattern={"q": "2-6"}) == [2, 3, 4, 5, 6]
    assert ranks(rank_pattern={"q": "6-2"}) == [6, 5, 4, 3, 2]
    assert ranks(rank_pattern={"q": "4-7"}, layers="1-3") == [4, 6, 7], "halves are rounded up"
    assert ranks(["q", "v"], rank_pattern={"v": 1, ".*": "2-6"}) == [2, 1, 3, 1, 4, 1, 5, 1, 6, 1]
    assert ranks(rank_pattern={"q": "4-8"}, layers=3) == [6], "the mean where there is one layer"
    flat, rising = (
        inject(copy.deepcopy(deep), "lora", rank=4, rank_pattern=own) for own in ({}, {".*": "2-6"})
    )
    assert flat.trainable() == rising.trainable()
    assert [a.scale for a in rising.adapters.values()] == [1.0] * 10, "alpha is the rank of each matrix"


@pytest.mark.parametrize(
    "layers, said",
    [
        (2, "0-1"),
        ("random:3", "0-1"),
        ("random", "random:4"),
        ("5-", "0-1"),
        (-3, "0-1"),
        ("a", "8-, -1 or random"),
        ("1:3", "8-"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(layers, said):
    with pytest.raises(ValueError, match=said):
        resolved(model("llama"), "q", layers=layers)


def test_ranks_and_alphas_by_pattern():
    injection = inject(
        copy.deepcopy(model("llama")),
        "lora",
        target_modules=["q", "v"],
        rank=4,
        rank_pattern={r".*\.1\.self_attn\.q_proj": 3, "q": 2},
        alpha_pattern={"v_proj": 12.0},
    )
    ranks = {name: adapter.rank for name, adapter in injection.adapters.items()}
    assert list(ranks.values()) == [2, 4, 3, 4]
    assert [a.scale for a in injection.adapters.values()] == [
        1.0,
        12 / 4,
        1.0,
        12 / 4,
    ]  # alpha is the rank of each matrix


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"rank_pattern": {"k": 2}}, "rank_pattern: unknown target among the adapted ones 'k'"),
        ({"rank_pattern": {"q": 0}}, "rank must be at least 1"),
        ({"rank_pattern": {"q": "0-4"}}, "rank must be at least 1"),
        ({"rank_pattern": {"q": "4-"}}, "rank must be an integer, or two.*got '4-'"),
        ({"rank_pattern": {"q": True}}, "got True"),
        ({"rank_pattern": {"embed": "1-2"}, "target_modules": "embed"}, "embed_tokens lies in no layer"),
        ({"rank_pattern": {"q": 99}}, "smaller side"),
        ({"rank_pattern": {"q": "2"}}, "an integer"),
        ({"alpha_pattern": {"q": "x"}}, "a number"),
        ({"variant": "vera", "alpha_pattern": {"q": 2.0}}, "vera has no alpha"),
        ({"budget": "x"}, "300k"),
        ({"budget": "-3"}, "300k"),
        ({"budget": 0}, "300k"),
        ({"budget": 100}, "rank 1 has 128"),
        ({"budget": "1k", "rank": 2}, "cannot be given as well"),
        ({"name": "a.b"}, "letters"),
    ],
)
def test_patterns_budgets_and_names_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        inject(copy.deepcopy(model("llama")), **{"variant": "lora", **wrong})


def test_a_variant_without_meaning_on_a_kind_of_layer_refuses_by_name():
    class Picky(VARIANTS["lora"]):
        @classmethod
        def refusal(cls, kind, shape, hyper):
            return "it needs two ears" if kind == "linear" else None

    said = r"lora cannot adapt model\.layers\.0\.self_attn\.q_proj, a linear \(.*\): it needs two ears"
    with pytest.raises(ValueError, match=said):
        inject(copy.deepcopy(model("llama")), Picky)


def test_a_missed_module_to_save_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'classifier'"):
        inject(copy.deepcopy(model("bert")), "lora", modules_to_save=["clasifier"])


def test_a_layer_cannot_be_adapted_and_train_in_full():
    module = copy.deepcopy(model("bert"))
    with pytest.raises(ValueError, match="both"):
        inject(module, "lora", target_modules=["q", "head"], modules_to_save=["classifier"], rank=1)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"variant": "lroa"}, "'lora'"),
        ({"rnak": 4}, "'rank'"),
        ({"rank": "4"}, "an integer"),
        ({"rank": True}, "an integer"),
        ({"rank": 17}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"init": "kaimign"}, "'kaiming'"),
        ({"target_modules": ["qq"]}, "qq"),
        ({"modules_to_save": ["nope"]}, "nope"),
        ({"variant": "full", "modules_to_save": ["nope"]}, "nope"),
        ({"variant": "zero_shot", "modules_to_save": ["nope"]}, "nope"),
        ({"variant": "lora_plus", "loraplus_lr_ratio": -1.0, "modules_to_save": ["lm_head"]}, "ratio"),
        ({"variant": "adalora", "rank": 4, "init_r": 3}, "init_r"),
        ({"variant": "lora_fa", "mode": "frozen"}, "'freeze' or 'projected'"),
    ],
)
def test_a_refusal_leaves_the_model_as_it_was(wrong, said):
    module = copy.deepcopy(model("gpt2" if "modules_to_save" in wrong else "llama"))
    before = {n: (id(p), p.requires_grad) for n, p in module.named_parameters(remove_duplicate=False)}
    arguments = {"variant": "lora", "target_modules": ["o"], **wrong}
    with pytest.raises(ValueError) as refusal:
        inject(module, **arguments)
    assert said in str(refusal.value)
    after = {n: (id(p), p.requires_grad) for n, p in module.named_parameters(remove_duplicate=False)}
    assert after == before
