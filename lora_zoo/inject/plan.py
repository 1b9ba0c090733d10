"""From what the user asks for to what will be built: checked values, places, ranks. Changes no model."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from lora_zoo.core.adapter import Adapter, LayerContext, Variant
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.core.errors import unknown
from lora_zoo.core.hyperparameters import accepted, check_hyperparameters, hyperparameters
from lora_zoo.core.init import find_init, init_names
from lora_zoo.core.variants import VARIANTS
from lora_zoo.inject.budget import rank_within
from lora_zoo.inject.matrices import TargetMatrix, places
from lora_zoo.inject.targets import (
    Layers,
    Names,
    Targets,
    by_pattern,
    choose,
    missing,
    overlooked,
    parameters_of,
)

Patterns = Mapping[str, Mapping[str, float]]
"""Hyperparameter -> place -> its value there, where it is not the same everywhere."""


class Plan(NamedTuple):
    """What a variant does to a model: matrices that get an adapter, parameters that train as they are.

    `unmatched` says, a sentence each, which targets match nothing.
    """

    adapted: list[TargetMatrix]
    fully_trained: list[str]
    unmatched: Sequence[str] = ()


class InjectionPlan(NamedTuple):
    """A variant with complete hyperparameters and what it will do to one model."""

    variant: type[Variant]
    plan: Plan
    hyper: dict[str, Any]
    patterns: Patterns


def plan_injection(
    model: nn.Module,
    variant: str | type[Variant] = "lora",
    *,
    target_modules: Names = ("q", "v"),
    exclude_modules: Names = (),
    layers: Layers | None = None,
    modules_to_save: Sequence[str] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    budget: int | str | None = None,
    **hyper: Any,
) -> InjectionPlan:
    """Check everything that `inject` takes against `model`. ValueError for what does not exist or fit.

    A target that matches nothing is in the plan's `unmatched`; it is for the caller to refuse it.
    """
    cls = VARIANTS.find(variant) if isinstance(variant, str) else variant
    complete = check(cls, hyper)
    fully_trained = parameters_of(model, modules_to_save) if modules_to_save else None
    chosen, unmatched = adapted(cls, model, Targets(target_modules, exclude_modules, layers))
    plan = Plan(chosen, cls.fully_trained(model, fully_trained), unmatched)
    for place in plan.adapted:
        if clash := next(filter(place.holds, plan.fully_trained), None):
            raise ValueError(f"{clash} cannot both be adapted and train in full; drop it from one of them")
    patterns = pattern_values(cls, plan.adapted, {"rank": rank_pattern, "alpha": alpha_pattern})
    if budget is not None and plan.adapted:
        if "rank" in hyper:
            raise ValueError(f"budget={budget} sets the rank; rank={hyper['rank']} cannot be given as well")
        sizes = [(place.shape, hyperparameters_at(place, {}, patterns)) for place in plan.adapted]
        complete["rank"] = rank_within(budget, cls, sizes, complete)
    return InjectionPlan(cls, plan, *completed(cls, plan.adapted, complete, patterns))


def adapted(cls: type[Variant], model: nn.Module, asked: Targets) -> tuple[list[TargetMatrix], list[str]]:
    """The matrices that get an adapter, and a sentence for each target that matches nothing."""
    if not cls.adapts:
        return [], []
    known = places(model)
    chosen, unmatched = choose(known, asked)
    if not chosen and not unmatched:
        raise ValueError(f"nothing is left to adapt of target_modules={asked.target_modules}")
    for place in chosen:
        if reason := cls.refuses.get(place.host.kind):
            raise ValueError(f"{cls.name} cannot adapt {place.name}, a {place.host.kind}: {reason}")
    if sentence := overlooked(known, asked, chosen):
        warnings.warn(sentence, stacklevel=4)
    return chosen, [missing(model, known, *miss) for miss in unmatched]


def check(cls: type[Variant], hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The variant's hyperparameters completed with defaults. ValueError for what no model could take."""
    complete = check_hyperparameters(cls, hyper)
    if complete.get("rank", 1) < 1:
        raise ValueError(f"{cls.name}: rank must be at least 1; got {complete['rank']}")
    init = complete.get("init")
    if init is not None:
        check_init(cls, init)
    return complete


def check_init(cls: type[Variant], name: str) -> None:
    """ValueError for an init that does not exist, or that the variant cannot begin with."""
    try:
        accepted = cls.accepts_init(find_init(name))
    except ValueError:
        accepted = False
    if not accepted:
        choices = unknown("init", name, init_names(cls.accepts_init))
        raise ValueError(f"{cls.name} cannot start from init={name}: {choices}")


def pattern_values(
    cls: type[Variant], chosen: list[TargetMatrix], given: Mapping[str, Mapping[str, float] | None]
) -> dict[str, dict[str, float]]:
    """Hyperparameter -> place -> value. ValueError for a pattern that fits nothing or a wrong value."""
    found: dict[str, dict[str, float]] = {}
    for key, patterns in given.items():
        if not patterns or not chosen:
            continue
        if key not in hyperparameters(cls):
            raise ValueError(f"{key}_pattern: {cls.name} has no {key}")
        for value in patterns.values():
            check(cls, {key: value})
        found[key] = by_pattern(chosen, dict(patterns), f"{key}_pattern")
    return found


def completed(
    cls: type[Variant], adapted: list[TargetMatrix], hyper: Mapping[str, Any], patterns: Patterns
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Hyperparameters and patterns with the values that follow from the rank of each matrix."""
    general = cls.complete(hyper)
    found = {key: dict(values) for key, values in patterns.items()}
    for matrix in adapted:
        own = cls.complete(hyperparameters_at(matrix, hyper, patterns))
        for key in (key for key in own if general[key] != hyper[key] and own[key] != general[key]):
            found.setdefault(key, {}).setdefault(matrix.name, own[key])
    return general, found


def hyperparameters_at(place: TargetMatrix, hyper: Mapping[str, Any], patterns: Patterns) -> dict[str, Any]:
    """The hyperparameters that hold at one place."""
    return dict(hyper) | {key: own[place.name] for key, own in patterns.items() if place.name in own}


def build(plan_injection: InjectionPlan, *, seed: int, counter: ForwardCounter) -> dict[str, Adapter]:
    """The adapters, not yet in any model. ValueError for a value that a matrix cannot take."""
    variant, plan, hyper, patterns = plan_injection
    if not plan.adapted:
        return {}
    own = {place.name: hyperparameters_at(place, hyper, patterns) for place in plan.adapted}
    greatest = {"rank": max(h["rank"] for h in own.values())} if "rank" in hyper else {}
    shapes = {place.name: place.shape for place in plan.adapted}
    device = plan.adapted[0].host.matrix().device
    shared = variant.hooks.shared(shapes, device, **{**hyper, **greatest})
    make: Callable[..., Any] = variant
    taken = accepted(variant, hyper).keys()
    return {
        place.name: make(
            LayerContext(place.name, place.host, seed, counter, shared),
            **{key: own[place.name][key] for key in taken},
        )
        for place in plan.adapted
    }
