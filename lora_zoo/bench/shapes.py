"""Models to measure on, from transformers' configurations with random weights: nothing is downloaded.

Few layers and a small vocabulary, so that the adapted layers are what is measured: costs are per layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's configuration and the batch that it is measured with; all its linear roles are adapted."""

    name: str
    family: str = "llama"
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int | None = None
    vocabulary: int = 256
    sequences: int
    length: int = 64

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def causal(self) -> bool:
        return self.family == "llama"

    def config(self) -> Any:
        return transformers.AutoConfig.for_model(
            self.family,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.length + 8,
            use_cache=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    def model(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> nn.Module:
        """The frozen base, in training mode; the same weights at every call."""
        head = "CausalLM" if self.causal else "SequenceClassification"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, f"AutoModelFor{head}").from_config(self.config())
        return model.to(device, dtype).train().requires_grad_(False)

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        g = torch.Generator().manual_seed(1)
        ids = torch.randint(3, 256, (self.sequences, self.length), generator=g)
        labels = ids if self.causal else torch.randint(0, 2, (self.sequences,), generator=g)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return {name: tensor.to(device) for name, tensor in batch.items()}


_ALL = (
    Shape(name="llama-192", hidden=192, intermediate=512, layers=2, heads=6, sequences=12, length=128),
    Shape(name="llama-768", hidden=768, intermediate=2048, layers=2, heads=12, sequences=4, length=128),
    # The embedded model; MiniLM-L6; 2 of RoBERTa-base's 12 layers; a layer of Llama-3.2-1B's.
    Shape(
        name="pocket",
        hidden=128,
        intermediate=384,
        layers=4,
        heads=4,
        sequences=32,
        length=48,
        vocabulary=725,
    ),
    Shape(name="minilm-l6", family="bert", hidden=384, intermediate=1536, layers=6, heads=12, sequences=16),
    Shape(
        name="roberta-base", family="roberta", hidden=768, intermediate=3072, layers=2, heads=12, sequences=8
    ),
    Shape(
        name="llama-1b",
        hidden=2048,
        intermediate=8192,
        layers=1,
        heads=32,
        kv_heads=8,
        sequences=1,
        length=128,
    ),
)
SHAPES = {shape.name: shape for shape in _ALL}
REFERENCE = ("llama-192", "llama-768")
"""The settings in which the targets are stated."""
