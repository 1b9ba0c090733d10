"""lora_zoo compares LoRA variants: one registry of adapters behind one small interface.

The names below are imported on first use, so that `import lora_zoo` costs no torch.
"""

import warnings
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "inject": "lora_zoo.injection.inject",
    "Injection": "lora_zoo.injection.inject",
    "load_adapter": "lora_zoo.formats.native",
    "save_adapter": "lora_zoo.formats.native",
    "load_adapters": "lora_zoo.formats.native",
    "save_adapters": "lora_zoo.formats.native",
    "save_peft": "lora_zoo.formats.peft.write",
    "adapters_of": "lora_zoo.injection.adapter_set",
    "paths": "lora_zoo.injection.paths",
    "preview": "lora_zoo.injection.preview",
    "concatenated": "lora_zoo.hosts.fused",
    "interleaved": "lora_zoo.hosts.fused",
    "register_fused": "lora_zoo.hosts.fused",
    "Adapter": "lora_zoo.core.adapter",
    "LowRank": "lora_zoo.variants.low_rank",
    "Additive": "lora_zoo.variants.low_rank",
    "AdapterHooks": "lora_zoo.core.hooks",
    "register": "lora_zoo.core.variants",
    "run_file": "lora_zoo.core.variants",
}
_RENAMED = {
    "declare_fused": "register_fused",
    "contiguous": "concatenated",
    "repeated": "interleaved",
    "Method": "AdapterHooks",
    "deltas": "updates",
    "results": "runs",
}
"""Former names, importable for one release."""
__all__ = [
    "Adapter",
    "AdapterHooks",
    "Additive",
    "Injection",
    "LowRank",
    "__version__",
    "adapters_of",
    "concatenated",
    "inject",
    "interleaved",
    "load_adapter",
    "load_adapters",
    "paths",
    "preview",
    "register",
    "register_fused",
    "run_file",
    "save_adapter",
    "save_adapters",
    "save_peft",
]


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        present = _RENAMED[name]
        warnings.warn(f"lora_zoo.{name} is now lora_zoo.{present}", DeprecationWarning, stacklevel=2)
        return __getattr__(present) if present in _HOMES else import_module(f"lora_zoo.{present}")
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_zoo' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
