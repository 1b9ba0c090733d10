"""The registered variants: classes under `lora_zoo/variants/`, found because their files are there."""

from typing import TYPE_CHECKING

from lora_zoo.core.registry import Registry

if TYPE_CHECKING:
    from lora_zoo.core.adapter import Variant


def _check(name: str, cls: "type[Variant]") -> None:
    for fact in ("paper", "equation"):
        if not isinstance(getattr(cls, fact, None), str):
            raise TypeError(f"variant {name!r} ({cls.__qualname__}) must state its `{fact}`")


VARIANTS: "Registry[type[Variant]]" = Registry("variant", "lora_zoo.variants", check=_check, attribute="name")
register = VARIANTS.register
