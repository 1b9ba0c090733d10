"""Variants' facts for people: names as papers write them, and what adapters are measured against."""

from typing import Any

from lora_zoo.core.variants import VARIANTS

BARE = ("variant", "init", "task", "target_modules", "model")
"""Axes whose values say by themselves what they are."""


def title_of(name: str) -> str:
    """The variant's `title`, else its class's name; `name` itself where none can be loaded under it."""
    cls = _found(name)
    return str(vars(cls).get("title", cls.__name__)) if cls else name


def is_baseline(name: str) -> bool:
    """True where adapters are measured against the variant; False where none can be loaded."""
    cls = _found(name)
    return cls is not None and cls.baseline


def label_of(axis: str) -> str:
    """An axis without the places of its key."""
    for prefix in ("variant.hyperparameters.", "config.", "variant."):
        axis = axis.removeprefix(prefix)
    return axis


def written(axis: str, value: str, *, alone: bool = True) -> str:
    """A value of an axis as people write it; after the axis, where it does not stand `alone`."""
    if axis == "variant":
        return title_of(value)
    return value if alone or axis in BARE else f"{label_of(axis)} {value}"


def _found(name: str) -> Any:
    try:
        return VARIANTS.find(name)
    except ValueError:
        return None
