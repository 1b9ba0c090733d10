"""Token-Level Adaptation of LoRA Adapters for Downstream Task Generalization (Belofsky, 2023,
arXiv:2311.10847).

Shapes: B sequences, L tokens, D width of an embedding, K adapters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_zoo.compositions.of_passes import OfPasses
from lora_zoo.core.composition import CompositionData, register


@register("token_level")
class TokenLevel(OfPasses):
    """§3: without training, each token's weights follow from how near its context is to each adapter's data.

    `centroids` are cₖ (K, D), see `centroid`; where they are not given, `prepare` takes them from each
    adapter's training examples, prompts with their answers. eₜ embeds the tokens up to the t-th, so that the
    next token is foretold with the weights of all that stands before it. The authors embed texts by a
    sentence encoder; no detail of it matters to the method, and here eₜ is the mean of the model's own input
    embeddings. In their code all tokens of a pass share the last one's weights.
    """

    equation = "W' x = W x + Σ ωₖ ΔWₖ x, ω = softmax(cos(e, cₖ) / temperature)"
    examples, looks_at = "own", 256

    def __init__(
        self,
        names: Sequence[str],
        *,
        centroids: Sequence[Sequence[float]] | None = None,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(names)
        if not temperature > 0:
            raise ValueError(f"token_level needs temperature > 0; got {temperature}")
        self.centroids_KD: Tensor | None = None
        self.temperature = temperature
        if centroids is not None:
            self.load_tensors({"centroids": torch.tensor(centroids)})

    def prepare(self, data: CompositionData) -> None:
        if self.centroids_KD is None:
            found = [centroid(data.model, data.own.get(name, ())) for name in self.names]
            self.centroids_KD = torch.tensor(found)

    def tensors(self) -> Mapping[str, Tensor]:
        return {} if self.centroids_KD is None else {"centroids": self.centroids_KD}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        c_KD = tensors.get("centroids", torch.empty(0))
        if c_KD.ndim != 2 or len(c_KD) != len(self.names):
            known = ", ".join(self.names) or "no adapter"
            raise ValueError(f"centroids: one for each of {known} is needed; got {len(c_KD)}")
        self.centroids_KD = c_KD

    @torch.no_grad()
    def weigh(self, model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Mapping[str, Tensor]:
        if self.centroids_KD is None:
            raise ValueError("token_level has no centroids: give them, or prepare it")
        e_BLD = contexts(model, given, named)
        c_KD = self.centroids_KD.to(e_BLD)
        if c_KD.shape[-1] != e_BLD.shape[-1]:
            raise ValueError(
                f"token_level: centroids have {c_KD.shape[-1]} entries, embeddings {e_BLD.shape[-1]}"
            )
        cosines_BLK = F.cosine_similarity(e_BLD[:, :, None], c_KD, dim=-1)
        return {"": (cosines_BLK / self.temperature).softmax(-1)}


def contexts(model: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """eₜ (B, L, D): the mean embedding of the tokens up to each; padding is left out."""
    ids = named.get("input_ids", given[0] if given else None)
    x_BLD = named.get("inputs_embeds")
    x_BLD = model.get_input_embeddings()(ids) if x_BLD is None else x_BLD
    mask_BL = named.get("attention_mask")
    seen_BL1 = torch.ones_like(x_BLD[..., :1]) if mask_BL is None else mask_BL[..., None].to(x_BLD)
    return (x_BLD * seen_BL1).cumsum(1) / seen_BL1.cumsum(1).clamp_min(1)


@torch.no_grad()
def centroid(model: Any, batches: Iterable[Mapping[str, Any]]) -> list[float]:
    """The mean embedding of the examples in `batches`, keyword arguments of the model: an adapter's cₖ.

    ValueError where there is none.
    """
    found = [contexts(model, (), batch)[:, -1] for batch in batches]
    if not found:
        raise ValueError("there are no examples whose mean could be a centroid")
    return [float(value) for value in torch.cat(found).mean(0)]
