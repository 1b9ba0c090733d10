"""lora_zoo compares LoRA variants: one registry of adapters behind one small interface.

The names below are imported on first use, so that `import lora_zoo` costs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "inject": "lora_zoo.adapters.injection",
    "Injection": "lora_zoo.adapters.injection",
    "load_adapter": "lora_zoo.adapters.checkpoint",
    "save_adapter": "lora_zoo.adapters.checkpoint",
    "load_adapters": "lora_zoo.adapters.checkpoint",
    "save_adapters": "lora_zoo.adapters.checkpoint",
    "save_peft": "lora_zoo.adapters.exchange.write",
    "adapters_of": "lora_zoo.adapters.named",
    "preview": "lora_zoo.adapters.preview",
    "contiguous": "lora_zoo.adapters.layouts",
    "declare_fused": "lora_zoo.adapters.layouts",
    "repeated": "lora_zoo.adapters.layouts",
    "Adapter": "lora_zoo.adapters.adapter",
    "LowRank": "lora_zoo.adapters.adapter",
    "Additive": "lora_zoo.adapters.adapter",
    "Method": "lora_zoo.adapters.method",
    "register": "lora_zoo.adapters.registry",
}
__all__ = [
    "Adapter",
    "Additive",
    "Injection",
    "LowRank",
    "Method",
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
