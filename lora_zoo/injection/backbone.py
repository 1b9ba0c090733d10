"""The part of a transformers model under its head: what reads embeddings and gives states.

Shapes: B sequences, L tokens.
"""

import inspect
import sys
from typing import Any

from torch import Tensor, nn


def backbone_of(model: Any) -> nn.Module:
    """The part of a model of transformers' under its head. ValueError for any other model."""
    config = getattr(model, "config", None)
    if not (hasattr(model, "base_model") and hasattr(model, "get_input_embeddings")):
        raise ValueError(
            f"virtual tokens are put before the embeddings of a model of transformers', and a "
            f"{type(model).__name__} is none"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"a {type(model).__name__} has an encoder and a decoder: virtual tokens go into one part alone"
        )
    backbone: nn.Module = model.base_model
    return backbone


def causal(backbone: nn.Module) -> bool:
    """True where a token sees those before it alone."""
    return any(getattr(module, "is_causal", False) for module in backbone.modules())


def cache_key(backbone: Any) -> str:
    """The name of the argument that takes a cache of keys and values; "" where there is none."""
    taken = inspect.signature(backbone.forward).parameters
    named = next((name for name in ("cache", "past_key_values") if name in taken), "")
    return named if _cache_of(backbone) else ""


def new_cache(model: Any) -> Any:
    """An empty cache of the class that the model's own code makes."""
    return _cache_of(backbone_of(model))(config=model.config)


def _cache_of(backbone: Any) -> Any:
    homes = (sys.modules[base.__module__] for base in type(backbone).__mro__)
    return next((home.DynamicCache for home in homes if hasattr(home, "DynamicCache")), None)


def without_first(output: Any, rank: int, length: int) -> Any:
    """A model's output without the first positions of all states (B, `length`, …) in it."""
    if isinstance(output, Tensor):
        return output[:, rank:] if output.ndim == 3 and output.shape[1] == length else output
    if isinstance(output, dict):  # transformers' ModelOutput, whose items are its attributes
        for key, value in list(output.items()):
            output[key] = without_first(value, rank, length)
    elif isinstance(output, tuple):
        return tuple(without_first(value, rank, length) for value in output)
    return output


def without(output: Any, value: Any) -> Any:
    """A model's output without this value in it."""
    if isinstance(output, dict):
        return type(output)(**{key: own for key, own in output.items() if own is not value})
    return tuple(own for own in output if own is not value)
