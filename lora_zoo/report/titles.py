"""Variants' facts for people: names as papers write them, and what adapters are measured against."""

from typing import Any

from lora_zoo.core.variants import VARIANTS


def title_of(name: str) -> str:
    """The variant's `title`, else its class's name; `name` itself where none can be loaded under it."""
    cls = _found(name)
    return str(vars(cls).get("title", cls.__name__)) if cls else name


def is_baseline(name: str) -> bool:
    """True where adapters are measured against the variant; False where none can be loaded."""
    cls = _found(name)
    return cls is not None and cls.baseline


def written(axis: str, value: str) -> str:
    """A value of an axis as people write it."""
    return title_of(value) if axis == "variant" else value


def _found(name: str) -> Any:
    try:
        return VARIANTS.find(name)
    except ValueError:
        return None
