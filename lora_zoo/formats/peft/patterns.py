"""PEFT's patterns: the modules that a configuration selects, and the rank and alpha of each."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lora_zoo.core.expressions import found, matches
from lora_zoo.formats.peft.forms import PeftFolder
from lora_zoo.injection.base_model import base_parameters, named_base_modules


def pattern_key(name: str, among: Iterable[str]) -> str:
    """A key of `rank_pattern` that PEFT finds in `name` alone."""
    others = [other for other in among if other != name]
    return name if not any(_hits(name, other) for other in others) else f"^{re.escape(name)}"


def _hits(key: str, name: str) -> bool:
    return matches(rf"(.*\.)?({key})$", name, whole=False)


def rank_and_alpha(folder: PeftFolder, module: str) -> tuple[int, float]:
    """Rank and alpha of `module`: the first pattern that fits the end of its name counts, as in PEFT."""
    found: list[Any] = []
    module = folder.targets.get(module, module)
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        patterns = folder.config.get(pattern) or {}
        first = next((p for p in patterns if _hits(p, module)), None)
        found.append(folder.config.get(key, 8) if first is None else patterns[first])
    return found[0], found[1]


def targets(model: nn.Module, wanted: Iterable[str], fully_trained: Iterable[str]) -> list[str] | str:
    """`target_modules` that selects `wanted` alone: names, or one expression where a name ends another.

    ValueError where PEFT would leave one out because of `modules_to_save`.
    """
    names = sorted(wanted)
    for name in names:
        if clash := next((m for m in fully_trained if _within(m, name)), None):
            raise ValueError(f"PEFT adapts nothing within modules_to_save: {name} is in {clash}")
    every = [name for name, _ in named_base_modules(model)]
    if any(other.endswith(f".{name}") for name in names for other in every if other not in names):
        return "|".join(re.escape(name) for name in names)
    return names


def selects(config: Mapping[str, Any], name: str) -> bool:
    """True if PEFT adapts the module called `name`."""
    if _is_among(config.get("exclude_modules") or [], name):
        return False
    if any(_within(m, name) for m in config.get("modules_to_save") or []):
        return False
    given = config.get("target_modules") or []
    if not _is_among(given, name):
        return False
    indexes = config.get("layers_to_transform")
    if isinstance(given, str) or name in given or indexes is None or indexes == []:
        return True
    return _layer(config.get("layers_pattern"), name) in (indexes if isinstance(indexes, list) else [indexes])


def _within(module: str, name: str) -> bool:
    return matches(rf"(^|.*\.){module}($|\..*)", name, whole=False)


def _is_among(given: str | list[str], name: str) -> bool:
    if isinstance(given, str):
        return matches(given, name)
    return any(name == one or name.endswith(f".{one}") for one in given)


def _layer(patterns: str | list[str] | None, name: str) -> int | None:
    """The number of the layer that `name` is in: the first after one of `patterns`, or after any word."""
    chosen = [patterns] if isinstance(patterns, str) and patterns else patterns
    tries = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in chosen or ()] or [r".*?\.[^.]*\.(\d+)\."]
    match = next((match for one in tries if (match := found(one, name, whole=False))), None)
    return int(match[1]) if match else None


def trained_modules(
    model: nn.Module, fully_trained: Iterable[str], forced: tuple[str, ...] = ()
) -> list[str]:
    """The topmost modules whose parameters are all `fully_trained`, and those that end in `forced`.

    ValueError where a parameter trains apart from its module, or where PEFT's suffixes would mean more.
    """
    trained, every = set(fully_trained), [(n, module) for n, module in named_base_modules(model) if n]
    owned = {name: {f"{name}.{p}" for p in base_parameters(module)} for name, module in every}
    complete = [name for name, own in owned.items() if own and (own <= trained or name.endswith(forced))]
    top = [name for name in complete if not any(name.startswith(f"{other}.") for other in complete)]
    held = set().union(*(owned[name] for name in top)) if top else set()
    if alone := sorted(trained - held):
        raise ValueError(
            f"{alone[0]} is fully trained, but not all of its module; PEFT's modules_to_save are whole ones"
        )
    for name in top:
        if other := next((o for o in owned if o.endswith(name) and o not in top), None):
            raise ValueError(f"PEFT would take {other} for {name}, which ends alike, in modules_to_save")
    return sorted(top)
