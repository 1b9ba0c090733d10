"""Load a model and its tokenizer, and say which modules the checkpoint did not bring."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from lora_zoo.configuration.settings import Model
from lora_zoo.pocket import HUB


class Loaded(NamedTuple):
    model: nn.Module
    new_modules: list[str]
    """Modules that start at random because the checkpoint has no weights for them (a classifier, usually)."""


def source(settings: Model) -> str:
    """Where the model comes from: the embedded folder, a local one, or a name on the Hub."""
    return str(HUB) if settings.path == "pocket" else settings.path


def load_tokenizer(settings: Model) -> Any:
    """The model's tokenizer, with a padding token. ValueError where it cannot be had."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source(settings), **_where(settings))
    except (OSError, ValueError) as error:
        raise ValueError(_unreachable(settings, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(f"model {settings.name}: its tokenizer has neither a padding nor an end token")
    return tokenizer


def load_model(
    settings: Model, auto_class: str, head: Mapping[str, Any], tokenizer: Any, seed: int
) -> Loaded:
    """The model on the CPU in evaluation mode; new heads are drawn from `seed` alone.

    Raises ValueError where the folder or name holds no model of that class.
    """
    torch.manual_seed(seed)
    options = {k: v for k, v in {"attn_implementation": settings.attn_implementation}.items() if v}
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            source(settings),
            dtype=settings.dtype,
            output_loading_info=True,
            **options,
            **head,
            **_where(settings),
        )
    except (OSError, ValueError) as error:
        raise ValueError(_unreachable(settings, error)) from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    missing = sorted({key.rpartition(".")[0] for key in info["missing_keys"]} - {""})
    return Loaded(model.eval(), missing)


def outline(settings: Model, auto_class: str, head: Mapping[str, Any]) -> nn.Module:
    """The model's structure without its weights, on torch's meta device: from its configuration alone.

    Raises ValueError where there is no configuration, or none of a model of that class.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(source(settings), **head, **_where(settings))
        dtype = config.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
        trust = {"trust_remote_code": True} if settings.trust_remote_code else {}
        with torch.device("meta"):
            return getattr(transformers, auto_class).from_config(config, dtype=dtype, **trust)
    except (OSError, ValueError) as error:
        raise ValueError(_unreachable(settings, error)) from error


def _where(settings: Model) -> dict[str, Any]:
    given = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    return {name: value for name, value in given.items() if value}


def _unreachable(settings: Model, error: Exception) -> str:
    first = " ".join(str(error).split("\n")[0].split())
    return f"model.path={settings.path} cannot be loaded as a model in Hub format: {first}"
