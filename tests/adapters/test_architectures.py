"""`target_modules=[q, v]` on every architecture: roles, training, merging, saving, and what PEFT does.

The role tables are written by hand from the classes of transformers 5.23; a number in a name is `*`.
Run as a script, this file prints the table as measured.
"""

import copy
import functools
import itertools
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lora_zoo.conformance.cases import copied, randomise, settings, train, with_turns
from lora_zoo.core.host import LayerHost
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject
from lora_zoo.injection.matrices import find_matrices
from lora_zoo.injection.roles import ROLES
from lora_zoo.injection.targets import resolve

tf.utils.logging.set_verbosity_error()
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]

SIZE = dict(vocab_size=37, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
TEXT = {**SIZE, "max_position_embeddings": 32}
LABELS = {**TEXT, "num_labels": 3}
GQA = {**TEXT, "num_key_value_heads": 2}
MOE = {**GQA, "num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "head_dim": 4}
GPT = dict(vocab_size=37, n_embd=16, n_layer=2, n_head=4, n_positions=32)
FALCON = dict(vocab_size=37, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
T5 = dict(vocab_size=37, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0)
BART = dict(
    vocab_size=37, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
)  # fmt: skip
WHISPER = dict(
    num_mel_bins=4, max_source_positions=8, max_target_positions=16, decoder_start_token_id=1,
    suppress_tokens=None, begin_suppress_tokens=None,
)  # fmt: skip
VISION = {**SIZE, "image_size": 8, "patch_size": 4}
SWIN = dict(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
WAV2VEC2 = dict(
    **SIZE, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2,
    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_labels=3, classifier_proj_size=8,
)  # fmt: skip
MOONSHINE = {
    f"{half}_num_{of}": n
    for half in ("encoder", "decoder")
    for of, n in dict(hidden_layers=2, attention_heads=4).items()
}
RELATIVE = dict(relative_attention=True, pos_att_type=["c2p", "p2c"])


def answer(logits, labels):
    return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))


class TorchEncoder(nn.Module):
    """A text classifier around torch's own encoder."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(37, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classifier = nn.Linear(16, 3)

    def forward(self, input_ids, labels=None):
        return answer(self.classifier(self.encoder(self.embed_tokens(input_ids)).mean(1)), labels)


class TorchCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, groups=2)
        self.classifier = nn.Linear(8, 3)

    def forward(self, pixel_values, labels=None):
        return answer(self.classifier(self.second(self.first(pixel_values).relu()).mean((-2, -1))), labels)


def two(**ends):
    """role -> {end of name: 2}, as two layers have it."""
    return {role: {end: 2} for role, end in ends.items()}


LM_HEAD = {"head": {"lm_head": 1}}
CLASSIFIER = {"head": {"classifier": 1}}
LLAMA = {
    **two(**{role: f"layers.*.self_attn.{role}_proj" for role in "qkvo"}),
    **two(**{role: f"layers.*.mlp.{role}_proj" for role in ("gate", "up", "down")}),
    "embed": {"model.embed_tokens": 1},
    **LM_HEAD,
}
PHI3 = {
    **LLAMA,
    **two(**{role: f"self_attn.qkv_proj.{role}" for role in "qkv"}),
    **two(gate="mlp.gate_up_proj.gate", up="mlp.gate_up_proj.up"),
}
GPT2 = {
    **two(**{role: f"attn.c_attn.{role}" for role in "qkv"}),
    **two(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
    "embed": {"transformer.wte": 1},
    **LM_HEAD,
}
GPTJ = {
    **GPT2,
    **two(**{role: f"attn.{role}_proj" for role in "qkv"}),
    **two(o="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out"),
}
NEOX = {
    **two(**{role: f"attention.query_key_value.{role}" for role in "qkv"}),
    **two(o="attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
    "embed": {"gpt_neox.embed_in": 1},
    **LM_HEAD,
}
BLOOM = {
    **NEOX,
    **two(**{role: f"self_attention.query_key_value.{role}" for role in "qkv"}, o="self_attention.dense"),
    "embed": {"transformer.word_embeddings": 1},
}
MPT = {
    **two(**{role: f"attn.Wqkv.{role}" for role in "qkv"}),
    **two(o="attn.out_proj", up="ffn.up_proj", down="ffn.down_proj"),
    "embed": {"transformer.wte": 1},
    **LM_HEAD,
}
FAIRSEQ = two(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.out_proj")
OPT = {**FAIRSEQ, **two(up="layers.*.fc1", down="layers.*.fc2"), "embed": {"embed_tokens": 1}, **LM_HEAD}
BERT = {
    **two(q="attention.self.query", k="attention.self.key", v="attention.self.value"),
    **two(o="attention.output.dense", up="intermediate.dense", down="layer.*.output.dense"),
    "embed": {"embeddings.word_embeddings": 1},
    **CLASSIFIER,
}
DISTILBERT = {
    **two(**{role: f"attention.{role}_lin" for role in "qkv"}),
    **two(o="attention.out_lin", up="ffn.lin1", down="ffn.lin2"),
    "embed": {"embeddings.word_embeddings": 1},
    **CLASSIFIER,
}
ALBERT = {  # one layer, used twice
    **{role: {f"attention.{name}": 1} for role, name in (("q", "query"), ("k", "key"), ("v", "value"))},
    **{"o": {"attention.dense": 1}, "up": {"albert_layers.*.ffn": 1}, "down": {"ffn_output": 1}},
    "embed": {"embeddings.word_embeddings": 1},
    **CLASSIFIER,
}
MODERNBERT = {
    **two(**{role: f"attn.Wqkv.{role}" for role in "qkv"}),
    **two(o="attn.Wo", gate="mlp.Wi.gate", up="mlp.Wi.up", down="mlp.Wo"),
    "embed": {"embeddings.tok_embeddings": 1},
    **CLASSIFIER,
}
T5_ROLES = {
    # encoder, decoder, cross-attention; `shared` is called by no forward pass
    **{role: {f"SelfAttention.{role}": 4, f"EncDecAttention.{role}": 2} for role in "qkvo"},
    **{"up": {"DenseReluDense.wi": 4}, "down": {"DenseReluDense.wo": 4}},
    "embed": {"encoder.embed_tokens": 1, "decoder.embed_tokens": 1},
    **LM_HEAD,
}
BART_ROLES = {
    **{
        role: {f"self_attn.{end}": 4, f"encoder_attn.{end}": 2}
        for role, end in dict(q="q_proj", k="k_proj", v="v_proj", o="out_proj").items()
    },
    **{"up": {"layers.*.fc1": 4}, "down": {"layers.*.fc2": 4}},
    "embed": {"encoder.embed_tokens": 1, "decoder.embed_tokens": 1},
    **LM_HEAD,
}  # fmt: skip
VIT = {
    **two(**{role: f"layers.*.attention.{role}_proj" for role in "qkvo"}),
    **two(up="mlp.fc1", down="mlp.fc2"),
    **CLASSIFIER,
}
EXPERTS = {
    **LLAMA,
    "gate": {"mlp.experts.gate_up_proj.*.gate": 6},
    "up": {"mlp.experts.gate_up_proj.*.up": 6},
    "down": {"mlp.experts.down_proj.*": 6},
}
LLAMA4 = {
    **LLAMA,
    **{
        role: {f"feed_forward.experts.{name}": 6, f"feed_forward.shared_expert.{role}_proj": 2}
        for role, name in dict(gate="gate_up_proj.*.gate", up="gate_up_proj.*.up", down="down_proj.*").items()
    },
}
TORCH = {
    **two(**{role: f"self_attn.in_proj_weight.{role}" for role in "qkv"}),
    **two(o="self_attn.out_proj", up="layers.*.linear1", down="layers.*.linear2"),
    "embed": {"embed_tokens": 1},
    **CLASSIFIER,
}


class Arch(NamedTuple):
    """A model's class, its config's arguments (none for a plain torch model), its roles and its input."""

    make: str | type[nn.Module]
    config: dict
    roles: dict
    inputs: str = "text"
    targets: tuple = ("q", "v")


OUTPUT = {"head": {"classifier.out_proj": 1}}
ARCHITECTURES = {
    "Llama": Arch("LlamaForCausalLM", GQA, LLAMA),
    "Llama, tied": Arch("LlamaForCausalLM", {**GQA, "tie_word_embeddings": True}, LLAMA),
    "Llama classifier": Arch(
        "LlamaForSequenceClassification", {**GQA, "num_labels": 3, **SPECIAL}, {**LLAMA, "head": {"score": 1}}
    ),
    "Mistral": Arch("MistralForCausalLM", GQA, LLAMA),
    "Qwen2": Arch("Qwen2ForCausalLM", GQA, LLAMA),
    "Qwen3": Arch("Qwen3ForCausalLM", {**GQA, "head_dim": 6}, LLAMA),
    "Gemma": Arch("GemmaForCausalLM", {**GQA, "head_dim": 6}, LLAMA),
    "Phi-3": Arch("Phi3ForCausalLM", {**GQA, **SPECIAL}, PHI3),
    "GPT-2": Arch("GPT2LMHeadModel", GPT, GPT2),
    "GPT-2 classifier": Arch(
        "GPT2ForSequenceClassification", {**GPT, "num_labels": 3, **SPECIAL}, {**GPT2, "head": {"score": 1}}
    ),
    "GPT-BigCode": Arch("GPTBigCodeForCausalLM", GPT, GPT2),
    "GPT-BigCode, multi-head": Arch("GPTBigCodeForCausalLM", {**GPT, "multi_query": False}, GPT2),
    "GPT-NeoX": Arch("GPTNeoXForCausalLM", TEXT, NEOX),
    "GPT-J": Arch("GPTJForCausalLM", {**GPT, "rotary_dim": 4}, GPTJ),
    "BLOOM": Arch("BloomForCausalLM", dict(vocab_size=37, hidden_size=16, n_layer=2, n_head=4), BLOOM),
    "Falcon, new": Arch(
        "FalconForCausalLM", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}, BLOOM
    ),
    "Falcon, multi-query": Arch("FalconForCausalLM", FALCON, BLOOM),
    "Falcon, multi-head": Arch("FalconForCausalLM", {**FALCON, "multi_query": False, "alibi": True}, BLOOM),
    "MPT": Arch("MptForCausalLM", dict(vocab_size=37, d_model=16, n_layers=2, n_heads=4), MPT),
    "OPT": Arch("OPTForCausalLM", {**FALCON, "ffn_dim": 24, "word_embed_proj_dim": 16}, OPT),
    "BERT": Arch("BertForSequenceClassification", LABELS, BERT),
    "BERT-MLM": Arch("BertForMaskedLM", TEXT, {**BERT, "head": {"cls.predictions.decoder": 1}}),
    "RoBERTa": Arch("RobertaForSequenceClassification", LABELS, {**BERT, **OUTPUT}),
    "DistilBERT": Arch(
        "DistilBertForSequenceClassification",
        dict(vocab_size=37, dim=16, n_layers=2, n_heads=4, hidden_dim=24, num_labels=3),
        DISTILBERT,
    ),
    "ALBERT": Arch("AlbertForSequenceClassification", {**LABELS, "embedding_size": 8}, ALBERT),
    "ELECTRA": Arch("ElectraForSequenceClassification", {**LABELS, "embedding_size": 8}, {**BERT, **OUTPUT}),
    "DeBERTa-v2": Arch(
        "DebertaV2ForSequenceClassification", {**LABELS, **RELATIVE},
        {**BERT, **two(q="self.query_proj", k="self.key_proj", v="self.value_proj")},
    ),
    "DeBERTa": Arch(
        "DebertaForSequenceClassification", {**LABELS, **RELATIVE},
        {**BERT, **two(**{role: f"attention.self.in_proj.{role}" for role in "qkv"})},
    ),
    "ModernBERT": Arch(
        "ModernBertForSequenceClassification", {**LABELS, **SPECIAL, "cls_token_id": 1, "sep_token_id": 2},
        MODERNBERT,
    ),
    "T5": Arch("T5ForConditionalGeneration", T5, T5_ROLES, "seq2seq"),
    "T5, gated": Arch(
        "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {**T5_ROLES, "gate": {"DenseReluDense.wi_0": 4}, "up": {"DenseReluDense.wi_1": 4}},
        "seq2seq",
    ),
    "BART": Arch("BartForConditionalGeneration", BART, BART_ROLES, "seq2seq"),
    "Whisper": Arch(
        "WhisperForConditionalGeneration", {**BART, **WHISPER, **SPECIAL},
        {**BART_ROLES, "embed": {"decoder.embed_tokens": 1}, "head": {"proj_out": 1}},
        "speech",
    ),
    "Moonshine": Arch(
        "MoonshineForConditionalGeneration", {**TEXT, **MOONSHINE, **SPECIAL, "decoder_start_token_id": 1},
        {
            **BART_ROLES, "o": {"self_attn.o_proj": 4, "encoder_attn.o_proj": 2},
            "gate": {"decoder.layers.*.mlp.fc1.gate": 2},
            "up": {"encoder.layers.*.mlp.fc1": 2, "decoder.layers.*.mlp.fc1.up": 2}, "down": {"mlp.fc2": 4},
            "embed": {"decoder.embed_tokens": 1}, "head": {"proj_out": 1},
        },
        "heard",
    ),
    "Wav2Vec2": Arch(
        "Wav2Vec2ForSequenceClassification", WAV2VEC2,
        {
            **two(**{role: f"attention.{role}_proj" for role in "qkv"}), **CLASSIFIER,
            **two(o="attention.out_proj", up="intermediate_dense", down="output_dense"),
        },
        "wave",
    ),
    "ViT": Arch("ViTForImageClassification", {**VISION, "num_labels": 3}, VIT, "image"),
    "CLIP vision": Arch(
        "CLIPForImageClassification", {"vision_config": VISION, "num_labels": 3},
        {**FAIRSEQ, **two(up="mlp.fc1", down="mlp.fc2"), **CLASSIFIER},
        "image",
    ),
    "Swin": Arch("SwinForImageClassification", {**SWIN, "num_labels": 3}, {
        **VIT, **two(**{role: f"blocks.*.attention.{role}_proj" for role in "qkvo"})
    }, "image"),
    "Mixtral": Arch("MixtralForCausalLM", MOE, EXPERTS),
    "Qwen3-MoE": Arch("Qwen3MoeForCausalLM", {**MOE, "moe_intermediate_size": 12}, EXPERTS),
    "GPT-OSS": Arch("GptOssForCausalLM", {**MOE, "num_experts_per_tok": 3}, EXPERTS),
    "Llama 4": Arch(
        "Llama4ForCausalLM", {**MOE, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 1}, LLAMA4
    ),
    "torch encoder": Arch(TorchEncoder, {}, TORCH),
    "torch CNN": Arch(TorchCNN, {}, CLASSIFIER, "image", ("first", "second")),
}  # fmt: skip


# --- models, inputs, what holds for them --------------------------------------------------------------------

STARTS = {"BART": 2, "Whisper": 1, "Moonshine": 1}  # the decoder's first token, else 0


@functools.cache
def _made(name):
    make, config, *_ = ARCHITECTURES[name]
    torch.manual_seed(0)
    cls = getattr(tf, make) if isinstance(make, str) else make
    model = cls(cls.config_class(**config)) if isinstance(make, str) else cls()
    randomise(model.parameters(), 0.2)
    return model.eval()


def fresh(name):
    return copied(_made(name))


def tokens(length=12):
    return torch.randint(3, 37, (3, length), generator=torch.Generator().manual_seed(3))


def inputs(name, length=12):
    arch, ids = ARCHITECTURES[name], tokens(length)
    pixels, source = arch.config.get("image_size", 8), torch.Generator().manual_seed(4)
    start = {"decoder_input_ids": ids.clone().index_fill(1, torch.tensor([0]), STARTS.get(name, 0))}
    return {
        "text": {"input_ids": ids},
        "seq2seq": {"input_ids": ids.flip(1), **start},
        "speech": {"input_features": torch.randn(3, 4, 16, generator=source), **start},
        "wave": {"input_values": torch.randn(3, 64, generator=source)},
        "heard": {"input_values": torch.randn(3, 1500, generator=source), **start},
        "image": {"pixel_values": torch.randn(3, 3, pixels, pixels, generator=source)},
    }[arch.inputs]


def batch(name):
    return inputs(name) | {"labels": torch.tensor([0, 2, 1]) if classifies(name) else tokens()}


def classifies(name):
    return not isinstance(ARCHITECTURES[name].make, str) or "num_labels" in ARCHITECTURES[name].config


@torch.no_grad()
def logits(model, name, length=12):
    return model(**inputs(name, length)).logits


def distance(one, other):
    """The greatest difference, relative to the greatest number."""
    return ((one - other).abs().max() / other.abs().max()).item()


def adapted(name, variant="lora", targets=(), **more):
    model = fresh(name)
    targets = targets or ARCHITECTURES[name].targets
    usual = {"alpha": 8.0} if "alpha" in hyperparameters(VARIANTS[variant]) else {}  # PEFT's default
    return model, inject(model, variant, target_modules=targets, **settings(variant, 2), **(usual | more))


def moved(name, variant="lora", targets=(), size=0.2, **more):
    """Adapted, and every trained tensor away from its start."""
    model, injection = adapted(name, variant, targets, **more)
    randomise(injection.parameters(), size, seed=1)
    return model, injection


def described(model):
    """What a model is made of, in its order."""
    return {
        "modules": [(n, type(m), m.training) for n, m in model.named_modules()],
        "parameters": [
            (n, type(p), p.shape, p.dtype, p.requires_grad, p.is_contiguous())
            for n, p in model.named_parameters(remove_duplicate=False)
        ],
        "buffers": [(n, b.dtype) for n, b in model.named_buffers()],
        "state": list(model.state_dict()),
        "hooks": [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()],
        "attributes": set(vars(model)),
    }


def check_training(name, model, injection):
    """Two steps move exactly the declared tensors, all of them."""
    before = {n: t.clone() for n, t in model.state_dict().items()}
    declared = {id(p) for p in injection.parameters()}
    reached = train(injection, lambda: model(**batch(name)).loss, steps=2, total=20)
    now = model.state_dict(keep_vars=True)
    assert {n for n, t in now.items() if not torch.equal(t, before[n])} == {
        n for n, t in now.items() if id(t) in declared
    }
    assert reached == injection.named_parameters().keys()


def check_merging(name, model, injection):
    """Merged, the model is a plain one that gives what the adapted one gave; unmerged, it is back."""
    plain = fresh(name)
    randomise(injection.parameters(), 0.2, seed=1)
    expected, before = logits(model, name), copy.deepcopy(model.state_dict())
    tensors = {place.tensor for place in injection.matrices.values()}
    assert distance(expected, logits(plain, name)) > 1e-2
    injection.merge()
    injection.unmerge()
    assert torch.equal(logits(model, name), expected)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    injection.merge()
    assert distance(logits(model, name), expected) < 1e-4
    injection.remove()
    assert described(model) == described(plain)
    assert distance(logits(model, name), expected) < 1e-4
    now, old = (dict(each.named_parameters(remove_duplicate=False)) for each in (model, plain))
    matrix_names = {n for n, p in now.items() if not torch.equal(p, old[n])}
    assert matrix_names == {n if n in matrix_names else f"{n}.weight" for n in tensors}


def check_leaving(name, model, injection):
    """Taken out unmerged, the model is the one from before, to the bit."""
    plain = fresh(name)
    logits(plain, name)  # at its first call transformers hangs hooks of its own into a model
    injection.remove()
    assert described(model) == described(plain)
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())


def check_saving(name, model, folder):
    """Plain transformers reads the merged model back."""
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    assert {n: p.shape for n, p in loaded.named_parameters(remove_duplicate=False)} == {
        n: p.shape for n, p in model.named_parameters(remove_duplicate=False)
    }
    assert torch.equal(logits(loaded, name), logits(model, name))


def all_roles(name):
    return [role for role in ROLES if role in ARCHITECTURES[name].roles]


EVERY = list(ARCHITECTURES)
SAVED = [name for name in EVERY if isinstance(ARCHITECTURES[name].make, str)]
TIED = [
    "Llama, tied", "GPT-2", "GPT-BigCode", "BLOOM", "Falcon, new", "MPT", "OPT", "BERT-MLM", "T5",
    "T5, gated", "BART", "Whisper", "Gemma",
]  # fmt: skip
ATTENTIVE = [name for name in EVERY if "q" in ARCHITECTURES[name].roles]

every = pytest.mark.parametrize("name", EVERY)


# --- roles --------------------------------------------------------------------------------------------------


def starred(name):
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


@every
def test_a_role_means_the_layers_that_play_it(name):
    model, roles = fresh(name), ARCHITECTURES[name].roles
    for role in ROLES:
        if role not in roles:
            with pytest.raises(ValueError, match=f"no role '{role}'"):
                resolve(model, role)
            continue
        found = [f".{starred(place.name)}" for place in resolve(model, role)]
        assert Counter({end: sum(n.endswith(f".{end}") for n in found) for end in roles[role]}) == roles[role]
        assert len(found) == sum(roles[role].values())


@pytest.mark.parametrize("name", ATTENTIVE)
def test_all_linear_is_every_linear_layer_outside_the_head(name):
    model, roles = fresh(name), set(ARCHITECTURES[name].roles) - {"embed", "head"}
    found = resolve(model, "all-linear")
    covered = {place.name for place in found}
    for role in roles:
        assert all(p.name in covered or p.whole in covered for p in resolve(model, role)), role
    assert not covered & {place.name for place in find_matrices(model) if place.role in ("embed", "head")}
    in_layers = re.compile(r".*\b(layers?|h|blocks?|\w+_layers)\.\d.*")
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and in_layers.fullmatch(n)}
    assert {name for p in found for name in (p.name, p.tensor)} >= {n for n in linear if "router" not in n}


# --- training, merging, saving ------------------------------------------------------------------------------


@every
def test_step_0_leaves_the_output_and_training_moves_exactly_the_adapted(name):
    model, injection = adapted(name)
    assert torch.equal(logits(model, name), logits(fresh(name), name))
    check_training(name, model, injection)
    check_leaving(name, model, injection)


@pytest.mark.parametrize("name", [name for name in SAVED if name in TIED])  # of others: with all roles
def test_merged_is_adapted_and_plain_transformers_reads_it(name, tmp_path):
    model, injection = adapted(name)
    check_merging(name, model, injection)
    check_saving(name, model, tmp_path)


@pytest.mark.filterwarnings("ignore:.*unties")
@pytest.mark.parametrize("name", EVERY)
def test_all_roles_at_once(name, tmp_path):
    model, injection = adapted(name, targets=all_roles(name))
    assert torch.equal(logits(model, name), logits(fresh(name), name))
    check_training(name, model, injection)
    with injection.disabled():
        assert torch.equal(logits(model, name), logits(fresh(name), name))
    check_merging(name, model, injection)
    if name in SAVED:
        check_saving(name, model, tmp_path)


SAMPLE = ["lora", "dora", "vera", "adalora", "pissa"]
HANDFUL = [
    "Llama, tied", "GPT-2", "GPT-NeoX", "Phi-3", "T5", "Mixtral", "GPT-OSS", "Llama 4", "torch encoder",
    "torch CNN",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*unties")
@pytest.mark.parametrize(
    ("name", "variant", "targets"),
    with_turns(itertools.product(HANDFUL, SAMPLE), ["all roles", "all-linear"]),
)
def test_other_variants_on_the_same_places(name, variant, targets):
    if targets == "all-linear" and name == "torch CNN":
        targets = ("first", "second")
    model, injection = adapted(name, variant, all_roles(name) if targets == "all roles" else targets)
    assert distance(logits(model, name), logits(fresh(name), name)) < 1e-5
    check_training(name, model, injection)
    check_merging(name, model, injection)


@pytest.mark.parametrize("variant", SAMPLE)
@pytest.mark.parametrize("name", HANDFUL)
def test_other_variants_leave_nothing_behind(name, variant):
    model, injection = adapted(name, variant)
    check_training(name, model, injection)
    check_leaving(name, model, injection)


@pytest.mark.parametrize("name", [name for name in HANDFUL if name in ATTENTIVE])
def test_a_bfloat16_model_stays_one(name):
    plain, model = fresh(name).bfloat16(), fresh(name).bfloat16()
    injection = inject(model, "lora", rank=2, target_modules=["q", "v", "down"])
    randomise(injection.parameters(), 0.2)
    matrix_names = {update.name: update.W_OI + update.dW_OI for update in injection}
    injection.merge()
    injection.remove()
    assert described(model) == described(plain)
    for place in find_matrices(model):
        if place.name in matrix_names:
            assert torch.equal(place.host.matrix(), matrix_names[place.name].bfloat16())


# --- parts of fused projections, matrices of stacked experts ------------------------------------------------

_FUSED = re.compile(
    r".*\b(c_attn|query_key_value|qkv_proj|gate_up_proj|Wqkv|Wi|fc1|in_proj|in_proj_weight)\..*"
)
FUSED = [
    name
    for name, arch in ARCHITECTURES.items()
    if any(_FUSED.fullmatch(end) for ends in arch.roles.values() for end in ends)
]


SEQUENCES = [n for n in ATTENTIVE if ARCHITECTURES[n].inputs in ("text", "seq2seq") and n != "GPT-OSS"]


@pytest.mark.parametrize("name", FUSED)
def test_parts_share_out_the_rows_of_their_whole(name):
    known = {place.name: place for place in find_matrices(fresh(name))}
    rows = {}
    for place in known.values():
        if place.whole:
            numbers = torch.arange(known[place.whole].shape[0])[place.host.part]
            rows[place.whole] = rows.get(place.whole, []) + numbers.tolist()
    assert rows
    for tensor, numbers in rows.items():
        assert sorted(numbers) == list(range(known[tensor].shape[0]))


@pytest.mark.parametrize("name", FUSED)
def test_parts_that_are_not_adapted_stay_to_the_bit(name):
    plain, seen = fresh(name), {}
    parts = [place for place in find_matrices(plain) if place.whole]
    roles = {place.role for place in parts}
    model, injection = moved(name, targets=sorted(roles & {"q", "v", "up"}))
    idle = [place for place in parts if place.role in roles & {"k", "gate"}]
    assert idle and not injection.adapters.keys() & {place.name for place in idle}
    for tensor in {place.tensor for place in idle if isinstance(place.host, LayerHost)}:
        model.get_submodule(tensor).register_forward_hook(
            lambda module, args, output, tensor=tensor: seen.update({tensor: (args[0], output)})
        )
    logits(model, name)
    for place in idle:
        if place.tensor in seen:
            x, y = seen[place.tensor]
            unadapted = plain.get_submodule(place.tensor)(x)
            assert torch.equal(place.host.rows_of(y), place.host.rows_of(unadapted))
            assert not torch.equal(y, unadapted)
    injection.merge()
    injection.remove()
    now = {place.name: place.host.matrix() for place in find_matrices(model)}
    for place in parts:
        assert torch.equal(now[place.name], place.host.matrix()) == (place in idle), place.name


@pytest.mark.parametrize("name", SEQUENCES)
def test_one_token_attends_to_its_own_value(name):
    """A softmax over one key is 1 whatever q and k (GPT-OSS attends to a sink as well)."""
    expected = logits(fresh(name), name, length=1)
    for roles, same in ((["q", "k"], True), (["v"], False)):
        model, _ = moved(name, targets=roles, size=0.5)
        assert (distance(logits(model, name, length=1), expected) < 1e-5) == same


STACKS = {  # where each forward pass finds the matrix (O, I) of expert e
    "Mixtral": ("mlp", lambda W, e: {"gate": W[e, :24], "up": W[e, 24:], "down": W[e]}),
    "Qwen3-MoE": ("mlp", lambda W, e: {"gate": W[e, :12], "up": W[e, 12:], "down": W[e]}),
    "GPT-OSS": ("mlp", lambda W, e: {"gate": W[e, :, ::2].T, "up": W[e, :, 1::2].T, "down": W[e].T}),
    "Llama 4": ("feed_forward", lambda W, e: {"gate": W[e, :, :24].T, "up": W[e, :, 24:].T, "down": W[e].T}),
}


@pytest.mark.parametrize("role", ["gate", "up", "down"])
@pytest.mark.parametrize("name", STACKS)
def test_one_expert_s_matrix_is_changed_where_the_forward_pass_reads_it(name, role):
    module, matrix = STACKS[name]
    parameter = f"model.layers.1.{module}.experts.{'down_proj' if role == 'down' else 'gate_up_proj'}"
    target = f"{parameter}.1" + ("" if role == "down" else f".{role}")
    model, injection = moved(name, targets=[target])
    expected = fresh(name).get_parameter(parameter).detach()
    ((_, adapter),) = injection.adapters.items()
    matrix(expected, 1)[role].add_(adapter.scale * (adapter.B_OR @ adapter.A_RI).detach())
    injection.merge()
    assert_close(model.get_parameter(parameter), expected, rtol=1e-6, atol=1e-6, check_stride=True)
    for n, p in fresh(name).named_parameters():
        assert n == parameter or torch.equal(model.get_parameter(n), p)


@pytest.mark.parametrize("name", FUSED)
def test_pissa_starts_from_the_part_s_own_principal_directions(name):
    _, injection = adapted(name, "pissa")
    plain = {place.name: place.host.matrix() for place in find_matrices(fresh(name))}
    for place_name, adapter in injection.adapters.items():
        U, S, Vh = torch.linalg.svd(plain[place_name].detach(), full_matrices=False)
        expected = U[:, :2] * S[:2] @ Vh[:2]
        assert_close((adapter.scale * adapter.B_OR @ adapter.A_RI).detach(), expected, rtol=1e-4, atol=1e-5)


def test_torch_s_fast_path_sees_the_adapters():
    """In evaluation without gradients torch's encoder reads all weights itself and calls no layer."""
    model, _ = moved("torch encoder", targets=all_roles("torch encoder"))
    slow = model(batch("torch encoder")["input_ids"]).logits
    assert slow.requires_grad and distance(logits(model, "torch encoder"), slow.detach()) < 1e-5


# --- tied embeddings ----------------------------------------------------------------------------------------

PAIRS = {
    f"{name}: {'+'.join(targets)}": (name, targets)
    for name in TIED
    for targets in (["embed"], ["head"], ["embed", "head"])
}


@pytest.mark.parametrize("pair", PAIRS)
def test_adapting_tied_embeddings_warns_of_the_cost_and_survives_the_disk(pair, tmp_path):
    name, targets = PAIRS[pair]
    model, injection = moved(name, targets=targets)
    before = fresh(name).config.to_dict()
    expected = logits(model, name)
    with pytest.warns(UserWarning, match=r"unties .* a copy of 592 parameters \(0.0 MiB\)"):
        injection.merge()
    merged = logits(model, name)
    injection.unmerge()
    assert model.config.to_dict() == before
    assert torch.equal(logits(model, name), expected)
    with pytest.warns(UserWarning, match="unties"):
        injection.merge()
    injection.remove()
    assert distance(merged, expected) < 1e-4
    every = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    assert not model.config.tie_word_embeddings or len(set(every)) < len(every)
    check_saving(name, model, tmp_path)
    assert described(model) == described(fresh(name))


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_that_trains_in_full_survives_the_disk(name, tmp_path):
    with pytest.warns(UserWarning, match=r"is tied to .* a copy of 592 parameters \(0.0 MiB\)"):
        model, injection = moved(name, modules_to_save=list(ARCHITECTURES[name].roles["head"]))
    expected = logits(model, name)
    injection.merge()
    injection.remove()
    assert distance(logits(model, name), expected) < 1e-4
    check_saving(name, model, tmp_path)


def test_models_without_ties_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, injection = moved("Llama", targets=["embed", "head"])
        injection.merge()


ALONE = """
import sys, torch
sys.modules["lora_zoo"] = None
import transformers
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    made, inputs, expected = torch.load(f"{folder}/expected.pt")
    model = getattr(transformers, made).from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected), made
"""


@pytest.mark.filterwarnings("ignore:.*unties")
def test_what_is_saved_loads_where_lora_zoo_is_not_installed(tmp_path):
    names = ["Llama, tied", "GPT-2", "Phi-3", "T5", "GPT-OSS", "Mixtral", "ViT"]
    for name in names:
        model, injection = moved(name, targets=all_roles(name))
        injection.merge()
        injection.remove().save_pretrained(tmp_path / name)
        expected = (ARCHITECTURES[name].make, inputs(name), logits(model, name))
        torch.save(expected, tmp_path / name / "expected.pt")
    folders = [str(tmp_path / name) for name in names]
    command = [sys.executable, "-c", ALONE, *folders]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr


# --- against PEFT -------------------------------------------------------------------------------------------


@every
def test_outputs_and_gradients_are_peft_s(name):
    """On each whole layer of a block that PEFT adapts too, and on the convolutions."""
    plain = fresh(name)
    roles = [role for role in ("q", "k", "v", "o", "gate", "up", "down") if role in ARCHITECTURES[name].roles]
    known = resolve(plain, roles) if roles else resolve(plain, "first")
    chosen = [p.name for p in known if not p.whole and isinstance(p.host, LayerHost)]
    model, injection = moved(name, targets=chosen)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=chosen)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config).base_model.model
    pairs = []
    for place_name, adapter in injection.adapters.items():
        layer = theirs.get_submodule(place_name)
        pairs.append((adapter.A_RI, layer.lora_A["default"].weight))
        pairs.append((adapter.B_OR, layer.lora_B["default"].weight))
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own.view_as(other))
    assert len(pairs) == sum(p.requires_grad for p in theirs.parameters())
    # In evaluation torch's encoder takes a fast path, on which PEFT's adapters have no effect.
    own, other = (each.train(name == "torch encoder")(**batch(name)) for each in (model, theirs))
    assert distance(own.logits.detach(), other.logits.detach()) < 1e-5
    (own.loss + other.loss).backward()
    largest = max(other.grad.abs().max() for _, other in pairs)
    for own, other in pairs:
        assert_close(own.grad.view_as(other), other.grad, rtol=1e-5, atol=1e-5 * largest.item())


# --- layers, exclusions, patterns ---------------------------------------------------------------------------

NUMBERED = {  # name -> what stands before a layer's number
    "Llama": r"model\.layers", "GPT-2": r"transformer\.h", "MPT": r"transformer\.blocks",
    "T5": r"(encoder|decoder)\.block", "BART": r"model\.(encoder|decoder)\.layers", "ViT": r"vit\.layers",
    "BERT": r"bert\.encoder\.layer", "Mixtral": r"model\.layers", "torch encoder": r"encoder\.layers",
}  # fmt: skip
LAYERS = {
    "0": (0, {0}), "['0']": (["0"], {0}), "1": (1, {1}), "'1-'": ("1-", {1}), "-1": (-1, {1}),
    "-2": (-2, {0}), "[0, -1]": ([0, -1], {0, 1}), "'0-1'": ("0-1", {0, 1}), "['1-1']": (["1-1"], {1}),
}  # fmt: skip


@pytest.mark.parametrize("layers, wanted", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", NUMBERED)
def test_layers_are_the_model_s_repeated_blocks(name, layers, wanted):
    roles = [role for role in ("q", "v", "down") if role in ARCHITECTURES[name].roles]
    block = re.compile(rf"{NUMBERED[name]}\.({'|'.join(map(str, wanted))})\..*")
    expected = [place.name for place in resolve(fresh(name), roles) if block.fullmatch(place.name)]
    _, injection = adapted(name, targets=roles, layers=layers)
    assert list(injection.adapters) == expected
    both = sum(sum(ARCHITECTURES[name].roles[role].values()) for role in roles)
    assert len(expected) == both * len(wanted) // 2


@pytest.mark.parametrize("layers", [2, -3, "2", "2-", "5-9", [0, 7], [-1, "3-"], "0-2"], ids=str)
@pytest.mark.parametrize("name", NUMBERED)
def test_a_layer_out_of_range_is_refused(name, layers):
    with pytest.raises(ValueError, match=r"layers=.*: the model's layers are 0-1"):
        adapted(name, layers=layers)


@pytest.mark.parametrize("layers", ["", "a", "1-2-3", "0:2", ["1", "x"], [1.5], True])
def test_what_is_no_layer_is_refused(layers):
    with pytest.raises(ValueError, match="is no layer; write for example"):
        adapted("Llama", layers=layers)


def test_what_lies_in_no_layer_is_left_out_by_layers():
    _, injection = adapted("Llama", targets=["q", "embed", "head"], layers=0)
    assert list(injection.adapters) == ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(ValueError, match="nothing is left"):
        adapted("Llama", targets=["embed", "head"], layers=0)


@pytest.mark.parametrize(
    "name, exclude, out",
    [
        ("Llama", "v", r".*v_proj"),
        ("Llama", ["model.layers.1.self_attn.q_proj"], r"model\.layers\.1\.self_attn\.q_proj"),
        ("Llama", [r".*layers\.0\..*"], r".*layers\.0\..*"),
        ("T5", [r".*EncDecAttention.*"], r".*EncDecAttention.*"),
        ("GPT-2", ["q"], r".*\.q"),
        ("GPT-2", ["h.0.attn.c_attn"], r".*h\.0.*"),
        ("GPT-2", ["h.0.attn.c_attn.v"], r".*h\.0.*v"),
        ("Mixtral", ["head", "q"], r".*q_proj"),
    ],
)
def test_excluded_modules_are_left_out(name, exclude, out):
    expected = [p.name for p in resolve(fresh(name), ["q", "v"]) if not re.fullmatch(out, p.name)]
    _, injection = adapted(name, exclude_modules=exclude)
    assert list(injection.adapters) == expected
    assert 0 < len(expected) < len(resolve(fresh(name), ["q", "v"]))


@pytest.mark.parametrize(
    "exclude, said",
    [
        ("w", "exclude_modules: unknown target 'w'"),
        ("(", "exclude_modules: .* no regular expression"),
        (["q", "v"], "nothing is left"),
    ],
)
def test_exclusions_that_miss_or_leave_nothing_are_refused(exclude, said):
    with pytest.raises(ValueError, match=said):
        adapted("Llama", exclude_modules=exclude)


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "T5", "Mixtral", "ViT"])
def test_patterns_give_roles_names_and_expressions_values_of_their_own(name):
    """The first pattern that means a matrix counts; what none means has the general value."""
    roles = [role for role in ("q", "v", "o", "up") if role in ARCHITECTURES[name].roles]
    chosen = [place.name for place in resolve(fresh(name), roles)]
    one, last = chosen[0], r".*\.(layers|h|block)\.1\..*"
    q, v = ({place.name for place in resolve(fresh(name), role)} for role in "qv")
    ranks, alphas = {one: 5, "v": 1, last: 3}, {last: 3.0, "q": 5.0}
    _, injection = adapted(name, targets=roles, rank_pattern=ranks, alpha_pattern=alphas)
    for place_name, adapter in injection.adapters.items():
        late = re.fullmatch(last, place_name)
        rank = 5 if place_name == one else 1 if place_name in v else 3 if late else 2
        alpha = 3.0 if late else 5.0 if place_name in q else 8.0
        assert adapter.A_RI.shape[0] == adapter.B_OR.shape[1] == rank
        assert adapter.scale == alpha / rank


@pytest.mark.parametrize(
    "variant, wrong, said",
    [
        ("lora", {"rank_pattern": {"k": 4}}, "rank_pattern: unknown target among the adapted ones 'k'"),
        ("lora", {"rank_pattern": {"nothing": 4}}, "rank_pattern: unknown target"),
        ("lora", {"rank_pattern": {"(": 4}}, "rank_pattern: .* no regular expression"),
        ("lora", {"rank_pattern": {"q": 0}}, "rank must be at least 1"),
        ("lora", {"rank_pattern": {"q": "4"}}, "rank must be an integer"),
        ("lora", {"rank_pattern": {"q": 17}}, "rank"),
        ("lora", {"alpha_pattern": {"q": 0.0}}, "alpha"),
        ("lora", {"alpha_pattern": {"k_proj": 1.0}}, "alpha_pattern: unknown target"),
        ("vera", {"alpha_pattern": {"q": 1.0}}, "alpha_pattern: vera has no alpha"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(variant, wrong, said):
    with pytest.raises(ValueError, match=said):
        adapted("Llama", variant, **wrong)


# --- what other code reads of a model -----------------------------------------------------------------------

GENERATING = [n for n in SAVED if not classifies(n) and n != "BERT-MLM"]


@torch.no_grad()
def greedy(model, name, steps):
    """The likeliest tokens one by one, each from a forward pass of its own."""
    given = inputs(name)
    key = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    for _ in range(steps):
        following = model(**given, use_cache=False).logits[:, -1:].argmax(-1)
        given[key] = torch.cat([given[key], following], dim=1)
    return given[key][:, -steps:]


def generated(model, name, steps):
    asked = dict(max_new_tokens=steps, do_sample=False, eos_token_id=None, forced_eos_token_id=None)
    return model.generate(**inputs(name), **asked, pad_token_id=0)[:, -steps:]


@pytest.mark.parametrize("name", GENERATING)
def test_generation_is_that_of_the_forward_pass_adapted_and_merged(name):
    model, injection = moved(name)
    expected = greedy(model, name, 4)
    assert torch.equal(generated(model, name, 4), expected)
    injection.merge()
    assert torch.equal(generated(model, name, 4), expected)
    assert not torch.equal(generated(fresh(name), name, 4), expected)


def embeddings(model):
    """(role, weight) of what transformers finds; T5's and BART's `shared` is called by no forward pass."""
    halves = model.config.model_type in ("t5", "bart")
    stacks = [model.get_encoder(), model.get_decoder()] if halves else [model]
    yield from (("embed", stack.get_input_embeddings().weight.T) for stack in stacks)
    yield "head", model.get_output_embeddings().weight


@pytest.mark.filterwarnings("ignore:.*unties")
@pytest.mark.parametrize("name", GENERATING)
def test_the_embeddings_that_others_ask_for_have_the_effective_weight(name):
    model, injection = moved(name, targets=["embed", "head"])
    effective = {u.name: u.W_OI + u.dW_OI for u in injection}
    for _ in ("adapted", "merged"):
        found = [(role, W_OI.detach()) for role, W_OI in embeddings(model)]
        for place, (role, W_OI) in zip(injection.matrices.values(), found, strict=True):
            assert place.role == role
            assert distance(W_OI, effective[place.name]) < 1e-6
        injection.merge()


@pytest.mark.parametrize("name", ["Llama, tied", "Phi-3", "GPT-NeoX", "Mixtral", "GPT-OSS"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    """Also with the embeddings adapted, whose output `enable_input_require_grads` reads by a hook."""
    found = []
    for checkpointing in (False, True):
        model, injection = moved(name, targets=["q", "v", "down", "embed"])
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        model(**batch(name)).loss.backward()
        found.append([p.grad for p in injection.parameters()])
    assert all(map(torch.equal, *found))


# --- the table, as measured ---------------------------------------------------------------------------------


def entry(place):
    """The end of its tensor's name, and whether it is a part of that tensor."""
    steps = [step for step in place.tensor.removesuffix(".weight").split(".") if not step.isdigit()]
    return ".".join(steps[-2:]) + (" [slice]" if place.name.startswith(f"{place.tensor}.") else "")


def row(name):
    found = [(place.role, entry(place)) for place in find_matrices(fresh(name))]
    cells = (Counter(end for own, end in found if own == role) for role in ROLES)
    return "| " + " | ".join([name, *("<br>".join(f"{e} × {n}" for e, n in c.items()) for c in cells)]) + " |"


def table():
    header = [f"| architecture | {' | '.join(ROLES)} |", "|---" * (1 + len(ROLES)) + "|"]
    return "\n".join([*header, *map(row, EVERY)])


def test_the_measured_table_has_each_of_these_and_says_how_many():
    told = (
        (Path(__file__).parents[2] / "experiments/architectures/README.md").read_text().partition("\n## ")[0]
    )
    rows = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")]
    assert rows[1:] == EVERY and f"on {len(EVERY)} models" in told


if __name__ == "__main__":
    print(table())
