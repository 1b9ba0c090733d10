"""The registered variants: classes under `lora_zoo/variants/`, found because their files are there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lora_zoo.core.registry import Registry

if TYPE_CHECKING:
    from lora_zoo.core.adapter import Variant

V = TypeVar("V", bound="Variant")


def _check(name: str, cls: "type[Variant]") -> None:
    for fact in ("paper", "equation"):
        if not isinstance(getattr(cls, fact, None), str):
            raise TypeError(f"variant {name!r} ({cls.__qualname__}) must state its `{fact}`")
    if cls.pointwise and _overrides(cls.hooks, "switch"):
        raise TypeError(
            f"variant {name!r} ({cls.__qualname__}) must state `pointwise = False`, as its hooks `switch` "
            "more than matrices"
        )
    needed = ("weight", "bias") if cls.pointwise else ("forward",)
    if cls.adapts and not any(_overrides(cls, method) for method in needed):
        also = "" if cls.pointwise else ", as it is not pointwise"
        raise TypeError(f"variant {name!r} ({cls.__qualname__}) must define `{'` or `'.join(needed)}`{also}")


def _overrides(cls: type[Any], method: str) -> bool:
    """True if a class below the interface itself defines `method`."""
    owner = next(base for base in cls.__mro__ if method in vars(base))
    return owner.__module__ not in ("lora_zoo.core.adapter", "lora_zoo.core.hooks")


VARIANTS: "Registry[type[Variant]]" = Registry(
    "variant",
    "lora_zoo.variants",
    check=_check,
    attribute="name",
    renamed={"head_only": "linear_probe"},
)
register = VARIANTS.register


def register_preset(
    name: str, variant: "type[V]", cls: str, *, inits: Sequence[str], paper: str, equation: str
) -> "type[V]":
    """Add `variant` under a second name, with initialisations of its own, the first one by default.

    Both names have one identity: a run of the preset is the same run as one of `variant` with its `init`.
    Returns the preset, a class called `cls`, which its module must keep under that name (for pickling).
    """
    facts: dict[str, Any] = {
        "preset_of": variant.name,
        "inits": tuple(inits),
        "accepts_init": classmethod(lambda cls, init: init.family in cls.inits),
        "defaults": {"init": inits[0]},
        "paper": paper,
        "equation": equation,
        "__doc__": f"{variant.__name__} with `init={inits[0]}`.",
        "__module__": variant.__module__,
        "__qualname__": cls,
    }
    preset = type(cls, (variant,), facts)
    VARIANTS.add(name, preset)
    return preset
