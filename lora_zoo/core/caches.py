"""The cache of earlier tokens in the keyword arguments of a model's pass, by its name in any transformers."""

from collections.abc import Mapping
from typing import Any

NAMES = ("cache", "past_key_values")


def cache_of(named: Mapping[str, Any]) -> Any | None:
    """The cache that a pass is given; None without one."""
    return next((named[name] for name in NAMES if named.get(name) is not None), None)


def without_cache(named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the same pass that neither reads nor writes a cache."""
    rest = {name: value for name, value in named.items() if name not in NAMES}
    told = named.keys() & {*NAMES, "use_cache"}  # a model that is told of no cache may know of none
    return rest | {"use_cache": False} if told else rest
