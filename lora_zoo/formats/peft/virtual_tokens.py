"""PEFT's prompt learning: one tensor for the whole model, what the virtual tokens have become."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.peft.forms import ParsedAdapter, PeftContent, PeftFolder, PeftFormat, pick, stored
from lora_zoo.injection.inject import Injection

TENSOR = "prompt_embeddings"
_SIZES = (
    "num_virtual_tokens",
    "token_dim",
    "num_layers",
    "num_attention_heads",
    "num_transformer_submodules",
)


@dataclass(frozen=True)
class VirtualTokenFormat(PeftFormat):
    """A file holds P (R, width), and not the network that may have made it: P alone is read, as `read_as`.

    `fields` maps our settings to PEFT's; `idle` are further ones, which say how a training began.
    """

    method: str
    read_as: str
    fields: Mapping[str, str] = field(default_factory=dict)
    idle: Collection[str] = ()

    names, weightless = (), True
    shared = (TENSOR,)
    shared_prefix = ""
    prefix = "base_model."

    @property
    def peft_type(self) -> str:
        return self.method

    @property
    def options(self) -> Collection[str]:
        return (*_SIZES, *self.fields.values(), *self.idle)

    def to_peft(self, injection: Injection) -> PeftContent:
        module, hooks = cast(nn.Module, injection.shared), cast(Any, injection.hooks)
        P = stored(module())
        config = {"peft_type": self.peft_type, "num_virtual_tokens": len(P), "num_transformer_submodules": 1}
        config |= {theirs: _value(injection, ours) for ours, theirs in self.fields.items()}
        return PeftContent(config | hooks.sizes(injection.model), {TENSOR: P})

    def from_peft(self, folder: PeftFolder, model: nn.Module) -> ParsedAdapter:
        R, parts = folder.config.get("num_virtual_tokens"), folder.config.get("num_transformer_submodules")
        if type(R) is not int or R < 1:
            raise ValueError(f"num_virtual_tokens must be a whole number above 0; got {R!r}")
        if parts not in (1, None):
            raise ValueError(f"num_transformer_submodules={parts}: virtual tokens are for models of one part")
        hooks: Any = VARIANTS.find(self.read_as).hooks
        (P,) = pick("the file", folder.shared, {TENSOR: (R, hooks.width(model))})
        return ParsedAdapter({"rank": R}, {}, [], {"shared.P": P})


def _value(injection: Injection, ours: str) -> Any:
    """A setting as PEFT writes it; of one that is `auto`, what the module made of it, or None."""
    value = injection.hyper[ours]
    value = getattr(injection.shared, ours, None) if value == "auto" else value
    return value.upper() if isinstance(value, str) else value
