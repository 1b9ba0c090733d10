"""Compositions whose weights are found once for each pass of the model, from what it is given.

Shapes: B sequences, L tokens, K adapters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.caches import cache_of
from lora_zoo.core.composition import RoutedComposition


class OfPasses(RoutedComposition, ABC):
    """`weigh` gives the weights of a pass; an adapter that becomes active later has the weight 1."""

    weights: Mapping[str, Tensor]
    """The weights (B, L, K) of the latest pass: layer -> weights, with "" for layers that are not named."""
    reading = False
    """True in a pass of its own, within another one: the weights then stay what they are."""
    seen: Callable[[Mapping[str, Tensor]], None] | None = None
    """Called with the weights of each pass."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.weights = {}
        self._generation: tuple[Any, Any] = None, None

    def enter(self, model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
        super().enter(model, layers)
        if not hasattr(model, "get_input_embeddings"):
            whose = f"a model of transformers', and a {type(model).__name__} is none"
            raise ValueError(f"{self.name} weighs the tokens of {whose}")
        self._without_a_cache(model)
        self.handles.append(model.register_forward_pre_hook(self._begin, with_kwargs=True))

    def _without_a_cache(self, model: Any) -> None:
        """Let texts be generated without a cache, until the composition leaves the model."""
        generation = getattr(model, "generation_config", None)
        self._generation = generation, getattr(generation, "use_cache", None)
        if generation is not None:
            generation.use_cache = False

    def leave(self) -> None:
        super().leave()
        generation, before = self._generation
        if generation is not None:
            generation.use_cache = before
        self._generation = None, None

    def _begin(self, model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """ValueError for a pass whose former tokens are in a cache: their weights are not known any more."""
        if cache_of(named) is not None:
            raise ValueError(f"{self.name} reads all tokens in each pass: use_cache=False lets it generate")
        if not self.reading:
            self.weights = self.weigh(model, given, named)
            if self.seen is not None:
                self.seen(self.weights)

    @abstractmethod
    def weigh(self, model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Mapping[str, Tensor]:
        """The weights (B, L, K) of the adapters `names`: layer -> weights, or "" for every layer."""

    def route(self, layer: str, x: Tensor, names: Sequence[str]) -> Tensor | None:
        weights = self.weights.get(layer, self.weights.get(""))
        if weights is None:
            return None
        known = {name: weights[..., k] for k, name in enumerate(self.names)}
        return torch.stack([known.get(name, torch.ones_like(weights[..., 0])) for name in names], dim=-1)
