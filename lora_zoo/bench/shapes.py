"""Models to measure on, from transformers' configurations with random weights: nothing is downloaded.

Few layers and a small vocabulary, so that the adapted layers are what is measured: costs are per layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """A model's configuration and the batch that it is measured with; all its linear roles are adapted."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    sequences: int
    length: int
    kv_heads: int | None = None
    vocabulary: int = 256
    family: str = "llama"

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
    # name, hidden, intermediate, layers, heads, sequences, length
    Shape("llama-192", 192, 512, 2, 6, 12, 128),
    Shape("llama-768", 768, 2048, 2, 12, 4, 128),
    Shape("pocket", 128, 384, 4, 4, 32, 48, vocabulary=725),  # the embedded model
    Shape("minilm-l6", 384, 1536, 6, 12, 16, 64, family="bert"),
    Shape("roberta-base", 768, 3072, 2, 12, 8, 64, family="roberta"),  # 2 of its 12 layers
    Shape("llama-1b", 2048, 8192, 1, 32, 1, 128, kv_heads=8),  # a layer of Llama-3.2-1B
)
SHAPES = {shape.name: shape for shape in _ALL}
REFERENCE = ("llama-192", "llama-768")
"""The settings in which the targets are stated."""
