"""lora_zoo compares LoRA variants: one registry of adapters behind one small interface.

The names below are imported on first use, so that `import lora_zoo` costs no torch.
"""

from lora_zoo.core.lazy import lazy

__version__ = "0.1.0"

_HOMES = {
    "inject": "injection.inject",
    "Injection": "injection.inject",
    "load_adapter": "formats.native",
    "save_adapter": "formats.native",
    "load_adapters": "formats.native",
    "save_adapters": "formats.native",
    "load_composed": "formats.composed",
    "save_peft": "formats.peft.write",
    "adapters_of": "injection.adapter_set",
    "BASE": "injection.named_rows",
    "paths": "injection.paths",
    "preview": "injection.preview",
    "concatenated": "hosts.fused",
    "interleaved": "hosts.fused",
    "register_fused": "hosts.fused",
    "Adapter": "core.adapter",
    "LowRank": "variants.low_rank",
    "Additive": "variants.low_rank",
    "AdapterHooks": "core.hooks",
    "register": "core.variants",
    "run_file": "core.user_files",
    "compare": "compare",
    "variants": "variants",
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
    "BASE",
    "Adapter",
    "AdapterHooks",
    "Additive",
    "Injection",
    "LowRank",
    "__version__",
    "adapters_of",
    "compare",
    "concatenated",
    "inject",
    "interleaved",
    "load_adapter",
    "load_adapters",
    "load_composed",
    "paths",
    "preview",
    "register",
    "register_fused",
    "run_file",
    "save_adapter",
    "save_adapters",
    "save_peft",
    "variants",
]

__getattr__ = lazy(__name__, _HOMES, _RENAMED)
