"""Models to measure on, from transformers' configurations with random weights: nothing is downloaded.

Few layers and a small vocabulary, so that the adapted layers are what is measured: costs are per layer.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lora_zoo.adapters.registry import unknown
from lora_zoo.pocket import HUB

Batch = dict[str, Tensor]
VOCABULARY = 256
CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


@dataclass(frozen=True)
class Shape:
    """A model's configuration and the batch that it is measured with; all its linear roles are adapted."""

    name: str
    config: Callable[[], Any]
    sequences: int
    length: int
    head: str = CAUSAL

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def model(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> nn.Module:
        """The frozen base, in training mode; the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, self.head).from_config(self.config())
        return model.to(device, dtype).train().requires_grad_(False)

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        g = torch.Generator().manual_seed(1)
        ids = torch.randint(3, VOCABULARY, (self.sequences, self.length), generator=g)
        labels = ids if self.head == CAUSAL else torch.randint(0, 2, (self.sequences,), generator=g)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return {name: tensor.to(device) for name, tensor in batch.items()}


def llama(
    name: str,
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int | None = None,
    sequences: int,
    length: int,
) -> Shape:
    config = functools.partial(
        transformers.LlamaConfig,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=length,
        use_cache=False,
    )
    return Shape(name, config, sequences, length)


def encoder(name: str, family: type[Any], *, hidden: int, layers: int, sequences: int, length: int) -> Shape:
    config = functools.partial(
        family,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=12,
        vocab_size=VOCABULARY,
        max_position_embeddings=length + 8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Shape(name, config, sequences, length, head=CLASSIFIER)


POCKET = functools.partial(transformers.AutoConfig.from_pretrained, str(HUB), use_cache=False)
# The two reference settings; the embedded model; MiniLM-L6; 2 of RoBERTa-base's 12 layers; a layer of
# Llama-3.2-1B.
_ALL = (
    llama("llama-192", hidden=192, intermediate=512, layers=2, heads=6, sequences=12, length=128),
    llama("llama-768", hidden=768, intermediate=2048, layers=2, heads=12, sequences=4, length=128),
    Shape("pocket", POCKET, sequences=32, length=48),
    encoder("minilm-l6", transformers.BertConfig, hidden=384, layers=6, sequences=16, length=64),
    encoder("roberta-base", transformers.RobertaConfig, hidden=768, layers=2, sequences=8, length=64),
    llama(
        "llama-1b", hidden=2048, intermediate=8192, layers=1, heads=32, kv_heads=8, sequences=1, length=128
    ),
)
SHAPES = {shape.name: shape for shape in _ALL}
REFERENCE = ("llama-192", "llama-768")
"""The settings in which the targets are stated."""


def find_shape(name: str) -> Shape:
    if name not in SHAPES:
        raise ValueError(unknown("shape", name, SHAPES))
    return SHAPES[name]
