"""Embeddings, plain and scaled."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from lora_zoo.core.host import LayerHost
from lora_zoo.hosts.find import HOSTS


@HOSTS.register("embedding")
class EmbeddingHost(LayerHost):
    """`torch.nn.Embedding`, a linear map of one-hot tokens: stored as (I, O) = (vocabulary, features)."""

    peft_layer = "embedding"
    # loralib and PEFT: on an embedding A is zero and B standard normal.
    conventional_inits: ClassVar[Mapping[str, str]] = {"kaiming": "embedding"}

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return type(layer) is nn.Embedding and layer.max_norm is None

    def view(self, stored: Tensor) -> Tensor:
        return stored.T

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        # As in PEFT, a padding token teaches its own column nothing.
        return F.embedding(x, W_OI.T, padding_idx=self.layer.padding_idx)  # type: ignore[arg-type]

    def dropped(self, x: Tensor, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        return x  # token ids cannot be dropped to zero


@HOSTS.register("scaled embedding")
class ScaledEmbeddingHost(EmbeddingHost):
    """transformers' `…ScaledWordEmbedding` (Gemma, BART): an embedding times a constant."""

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        scaled = type(layer).__name__.endswith("ScaledWordEmbedding") and hasattr(layer, "embed_scale")
        return scaled and len(list(layer.parameters())) == 1

    def times(self, x: Tensor, W_OI: Tensor) -> Tensor:
        return super().times(x, W_OI) * self.layer.embed_scale  # type: ignore[operator]
