"""Targets by role: `target_modules=[q, v]` means the same on every architecture.

A target is a role (q, k, v, o, gate, up, down, embed, head), `all-linear`, a switch of LitGPT (lora_query,
lora_mlp, …), the name of a matrix or of a module around some (or the end of one), or a regular expression
that matches whole names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lora_zoo.core.errors import unknown
from lora_zoo.core.expressions import matches
from lora_zoo.core.ranks import Slope
from lora_zoo.injection.base_model import base_parameters, named_base_modules
from lora_zoo.injection.layers import in_layers, ranks_by_depth
from lora_zoo.injection.matrices import TargetMatrix, find_matrices
from lora_zoo.injection.module_names import base_name
from lora_zoo.injection.roles import PRESETS, ROLES, fused, of_head, role_of, roles_in
from lora_zoo.injection.trained_kinds import KINDS

ALL_LINEAR = "all-linear"
"""Every linear layer outside of the head, as in PEFT."""
Names = str | Sequence[str]
Layers = int | str | Sequence[int | str]


@dataclass(frozen=True)
class Targets:
    """The user's choice of matrices: targets, less the excluded ones, in some layers or in all.

    `seed` draws random layers.
    """

    target_modules: Names = ("q", "v")
    exclude_modules: Names = ()
    layers: Layers | None = None
    seed: int = 0


def resolve(model: nn.Module, targets: Targets | Names) -> list[TargetMatrix]:
    """The matrices that `targets` select, in the model's order. ValueError where one matches nothing."""
    known = find_matrices(model)
    chosen, unmatched = choose(known, targets if isinstance(targets, Targets) else Targets(targets))
    if unmatched:
        raise ValueError(missing(model, known, *unmatched[0]))
    return chosen


def choose(known: list[TargetMatrix], targets: Targets) -> tuple[list[TargetMatrix], list[tuple[str, str]]]:
    """The chosen matrices, and (key, target) of each target that matches nothing."""
    if not as_list(targets.target_modules):
        raise ValueError("target_modules is empty; name at least one role, e.g. target_modules=[q,v]")
    unmatched: list[tuple[str, str]] = []

    def matching_names(key: str, names: Names) -> set[str]:
        found: set[str] = set()
        for target in as_list(names):
            matched = {matrix.name for matrix in matching(known, target, key)}
            unmatched.extend([] if matched else [(key, target)])
            found |= matched
        return found

    wanted = matching_names("target_modules", targets.target_modules)
    excluded = matching_names("exclude_modules", targets.exclude_modules)
    chosen = [p for p in known if p.name in wanted and not excluded & {p.name, p.whole}]
    if targets.layers is not None:
        chosen = in_layers(chosen, known, targets.layers, targets.seed)
    names = {matrix.name for matrix in chosen}
    for matrix in chosen:
        if matrix.whole in names:
            raise ValueError(
                f"target_modules names both {matrix.whole} and its part {matrix.name}; choose one"
            )
    return chosen, unmatched


def matching(known: list[TargetMatrix], target: str, key: str = "target_modules") -> list[TargetMatrix]:
    """The matrices that one target selects, none where it matches nothing. `key` is named in errors."""
    if target == ALL_LINEAR:
        return [p for p in known if p.linear and not p.whole and not of_head(p.name)]
    if meant := roles_in(target):
        return [p for p in known if p.role in meant]
    if re.fullmatch(r"[\w.]+", target):
        target = base_name(target, {p.name.partition(".")[0] for p in known})
        exact = [p for p in known if _ends(p.name, target) or (not p.whole and _ends(p.tensor, target))]
        within = re.compile(rf"(?:.*\.)?{re.escape(target)}\..*")
        return exact or [p for p in known if not p.whole and within.fullmatch(p.name)]
    try:
        found = {p.name: p for p in known if matches(target, p.name)}
    except re.error as error:
        raise ValueError(f"{key}: {target!r} is no regular expression: {error}") from error
    return [p for p in found.values() if p.whole not in found]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def as_list(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]


def missing(model: nn.Module, known: list[TargetMatrix], key: str, target: str) -> str:
    """The message for a target that matches nothing, with the choices that would match."""
    exists = [m for n, m in named_base_modules(model) if n and _ends(n, target)]
    if exists:
        kinds = "/".join(sorted({type(module).__name__ for module in exists}))
        return f"{key}: {target!r} is a {kinds}, which holds no matrix to adapt"
    ends = sorted({p.name.rpartition(".")[2] for p in known if not p.whole and p.name == p.tensor})
    unsliced = sorted({name.rpartition(".")[2] for name in _unsliced(known)})
    if unsliced and {"q", "k", "v"} & {*roles_in(target)}:
        return (
            f"{key}: role {target!r} is fused into {', '.join(unsliced)} in this model, in an order that is "
            f"not known here; target_modules=[{unsliced[0]}] is the whole; register_fused() declares it"
        )
    roles = [role for role in ROLES if any(p.role == role for p in known)]
    if roles_in(target) and roles:
        return f"{key}: this model has no role {target!r}. It has: {', '.join(roles)}"
    linear = "'all-linear', or " if matching(known, ALL_LINEAR) else ""
    there = f"give {linear}names of its own: {', '.join(ends)}" if ends else "it has none at all"
    if target == ALL_LINEAR:
        return f"{key}: this model has no linear layer outside of its head; {there}"
    if roles_in(target):
        return f"{key}: no matrix of this model has a role such as {target!r}; {there}"
    return f"{key}: " + unknown("target", target, [*roles, ALL_LINEAR, *PRESETS, *ends])


def _unsliced(known: list[TargetMatrix]) -> list[str]:
    """The names of layers that seem to fuse q, k and v in an unknown order."""
    sliced = {p.whole for p in known}
    return [p.name for p in known if not p.whole and fused(p.name) and p.name not in sliced]


def overlooked(known: list[TargetMatrix], targets: Targets, chosen: list[TargetMatrix]) -> str:
    """A warning where a role is adapted in some layers while others fuse it in an unknown order, else ""."""
    asked = {role for target in as_list(targets.target_modules) for role in roles_in(target)}
    roles = [role for role in ("q", "k", "v") if role in asked]
    meant = {p.name for target in as_list(targets.exclude_modules) for p in matching(known, target)}
    meant |= {p.name for p in chosen}
    left = [name for name in _unsliced(known) if name not in meant]
    if not roles or not left or not any(p.role in roles for p in chosen):
        return ""
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return (
        f"target_modules: {left[0]}{more} may hold {', '.join(roles)} as well, fused in an order that is not "
        "known here, and stays as it is; register_fused() declares it, exclude_modules silences this"
    )


def by_pattern(chosen: list[TargetMatrix], patterns: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Matrix -> the value of the first pattern that selects it, of a slope the one at its depth.

    ValueError for a pattern that selects none.
    """
    values: dict[str, Any] = {}
    for target, value in patterns.items():
        meant = matching(chosen, target, key)
        if not meant:
            ends = sorted({p.role for p in chosen if p.role} | {p.name.rpartition(".")[2] for p in chosen})
            raise ValueError(f"{key}: " + unknown("target among the adapted ones", target, ends))
        left = [matrix for matrix in meant if matrix.name not in values]
        own = ranks_by_depth(left, value, key) if isinstance(value, Slope) else {}
        values |= {matrix.name: own.get(matrix.name, value) for matrix in left}
    return values


def parameters_of(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """The names of all parameters under `modules` (names, or the ends of names). ValueError for a miss.

    A parameter may be named as well, `LayerNorm.bias`, or a kind of `trained_kinds`.
    """
    found: list[str] = []
    names, every = [n for n, _ in named_base_modules(model)], base_parameters(model)
    for given in modules:
        if given in KINDS:
            if not (kind := KINDS[given](model)):
                raise ValueError(f"modules_to_save: {given}: the model has none that are known")
            found += kind
            continue
        module = base_name(given, {n.partition(".")[0] for n in names})
        owners = [n for n in names if n and _ends(n, module)]
        itself = [p for p in every if _ends(p, module)]
        if not owners and not itself:
            raise ValueError(
                "modules_to_save: "
                + unknown("module", given, [*(n for n in names if n and "." not in n), *KINDS])
            )
        held = [*itself, *(p for n in owners for p in every if p.startswith(f"{n}."))]
        if not held:
            raise ValueError(f"modules_to_save: {given} holds no parameter that could train")
        found += held
    return list(dict.fromkeys(found))


def head_names(model: nn.Module) -> list[str]:
    """The names of the model's topmost head modules (the usual `modules_to_save`)."""
    found = [
        n for n, m in named_base_modules(model) if role_of(n) == "head" and any(True for _ in m.parameters())
    ]
    return [n for n in found if not any(n.startswith(f"{other}.") for other in found)]
