"""Modules that an adapter would miss are refused before anything changes."""

import copy

import pytest
import torch
import transformers
from torch import nn

from lora_zoo import adapters_of, inject
from lora_zoo.conformance.cases import perturb


class Twice(nn.Module):
    """One layer under two names, or one block that is called twice."""

    def __init__(self, block=False):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Linear(4, 4)) if block else nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("repeated", [False, True])
def test_one_module_under_two_names_is_refused(repeated):
    model = nn.Sequential(*[nn.Linear(4, 4)] * 2) if repeated else Twice()
    first, second = ("0", "1") if repeated else ("a", "b")
    with pytest.raises(ValueError, match=rf"{first} and {second} are one module"):
        inject(model, "lora", rank=2, target_modules=[first])
    assert not adapters_of(model)


def test_a_layer_within_a_shared_block_is_adapted_and_merged_once():
    model, x = Twice(block=True), torch.randn(3, 4)
    injection = inject(model, "lora", rank=2, target_modules=["a.0"])
    perturb(injection)
    adapted = model(x)
    injection.merge()
    assert (model(x) - adapted).abs().max() <= 1e-6
    with pytest.raises(ValueError, match="a and b are one module"):
        inject(Twice(), "lora", rank=2, target_modules="all-linear")


def seq2seq(kind):
    torch.manual_seed(0)
    if kind == "t5":
        config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        return transformers.T5ForConditionalGeneration(config)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "vocab_size": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(**sizes, **heads, encoder_ffn_dim=16, decoder_ffn_dim=16)
    )


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_embedding_that_no_pass_calls_is_refused(kind):
    model = seq2seq(kind)
    for call in ({"target_modules": ["shared"]}, {"modules_to_save": ["shared"]}):
        with pytest.raises(
            ValueError, match=r"shared holds the weight of .*no pass calls it: .*encoder\.embed"
        ):
            inject(copy.deepcopy(model), "lora", rank=2, **call)
    for targets in ("embed", "decoder.embed_tokens", "head"):
        inject(copy.deepcopy(model), "lora", rank=2, target_modules=[targets])
    assert len(inject(model, "full").trained) > 3
