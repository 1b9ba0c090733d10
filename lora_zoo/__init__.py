"""lora_zoo compares LoRA variants: one registry of adapters behind one small interface.

The names below are imported on first use, so that `import lora_zoo` costs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "inject": "lora_zoo.inject.injection",
    "Injection": "lora_zoo.inject.injection",
    "load_adapter": "lora_zoo.formats.native",
    "save_adapter": "lora_zoo.formats.native",
    "load_adapters": "lora_zoo.formats.native",
    "save_adapters": "lora_zoo.formats.native",
    "save_peft": "lora_zoo.formats.peft.write",
    "adapters_of": "lora_zoo.inject.adapter_set",
    "preview": "lora_zoo.inject.preview",
    "contiguous": "lora_zoo.hosts.fused",
    "declare_fused": "lora_zoo.hosts.fused",
    "repeated": "lora_zoo.hosts.fused",
    "Adapter": "lora_zoo.core.adapter",
    "LowRank": "lora_zoo.core.adapter",
    "Additive": "lora_zoo.core.adapter",
    "AdapterHooks": "lora_zoo.core.hooks",
    "register": "lora_zoo.core.registry",
}
__all__ = [
    "Adapter",
    "AdapterHooks",
    "Additive",
    "Injection",
    "LowRank",
    "__version__",
    "adapters_of",
    "contiguous",
    "declare_fused",
    "inject",
    "load_adapter",
    "load_adapters",
    "preview",
    "register",
    "repeated",
    "save_adapter",
    "save_adapters",
    "save_peft",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_zoo' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
