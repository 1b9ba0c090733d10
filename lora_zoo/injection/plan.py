"""Plans of injections: checked hyperparameters, target matrices, ranks. No model is changed."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lora_zoo.core.adapter import Adapter, LayerContext, Variant
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.dropout import ForwardCounter
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.errors import unknown
from lora_zoo.core.hyperparameters import accepted, check_hyperparameters, hyperparameters
from lora_zoo.core.init import find_init, init_names, statistics_needed
from lora_zoo.core.ranks import Slope, rank_of
from lora_zoo.core.statistics import Statistics, not_collectable
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.budget import rank_within
from lora_zoo.injection.layers import layer_of
from lora_zoo.injection.matrices import TargetMatrix, find_matrices
from lora_zoo.injection.quantized_base import refuse_trained, refuse_unreadable
from lora_zoo.injection.targets import (
    Layers,
    Names,
    Targets,
    by_pattern,
    choose,
    missing,
    overlooked,
    parameters_of,
)
from lora_zoo.injection.uncalled import check_called

Patterns = Mapping[str, Mapping[str, Any]]
"""Hyperparameter -> matrix -> its value there, where it is not the same everywhere."""


@dataclass(frozen=True)
class InjectionPlan:
    """A variant with complete hyperparameters, the matrices that it adapts and the parameters that it trains.

    `unmatched` holds a sentence for each target that matches nothing.
    """

    variant: type[Variant]
    hyperparameters: dict[str, Any]
    matrices: list[TargetMatrix]
    fully_trained: list[str]
    unmatched: Sequence[str] = ()
    patterns: Patterns = field(default_factory=dict)

    def hyperparameters_at(self, matrix: TargetMatrix) -> dict[str, Any]:
        """The hyperparameters of one matrix."""
        return hyperparameters_at(matrix, self.hyperparameters, self.patterns)

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics of data that the adapters need before they are built."""
        return statistics_needed(self.variant, self.hyperparameters)


def plan_injection(
    model: nn.Module,
    variant: str | type[Variant] = "lora",
    *,
    target_modules: Names = "auto",
    exclude_modules: Names = (),
    layers: Layers | None = None,
    modules_to_save: Sequence[str] = (),
    rank_pattern: Mapping[str, int | str] | None = None,
    alpha_pattern: Mapping[str, Alpha] | None = None,
    patterns: Patterns | None = None,
    budget: int | str | None = None,
    seed: int = 0,
    **hyper: Any,
) -> InjectionPlan:
    """Check everything that `inject` takes against `model`. ValueError for what does not exist or fit.

    A target that matches nothing is in the plan's `unmatched`; it is for the caller to refuse it.
    """
    refuse_adapted(model)
    refuse_unreadable(model)
    cls = VARIANTS.find(variant) if isinstance(variant, str) else variant
    complete = complete_hyperparameters(cls, hyper)
    to_save = parameters_of(model, modules_to_save) if modules_to_save else None
    wanted = cls.targets if target_modules == "auto" else target_modules
    matrices, unmatched = target_matrices(cls, model, Targets(wanted, exclude_modules, layers, seed))
    fully_trained = cls.fully_trained(model, to_save)
    given = {"rank": rank_pattern, "alpha": alpha_pattern} | dict(patterns or {})
    patterns = with_depth(cls, model, matrices, complete, pattern_values(cls, matrices, given))
    key = cls.sized_by
    if budget is not None and (matrices or (key in complete and not cls.adapts)):
        if key in hyper:
            raise ValueError(f"budget={budget} sets the {key}; {key}={hyper[key]} cannot be given as well")
        if complete.get("init") and find_init(complete["init"]).allot:
            raise ValueError(
                f"budget={budget} cannot be kept by init={complete['init']}, which moves rank across them"
            )
        sizes = [(m.shape, hyperparameters_at(m, {"role": m.role}, patterns)) for m in matrices]
        beside = partial(cls.trainable_beside, model)
        kinds = [m.host.kind for m in matrices]
        complete[key] = rank_within(budget, cls, sizes, complete, kinds, beside=beside)
    complete, patterns = complete_by_rank(cls, matrices, complete, patterns)
    plan = InjectionPlan(cls, complete, matrices, fully_trained, unmatched, patterns)
    check_present(model, plan)
    refuse_unfit(plan, model)
    return plan


def refuse_adapted(model: nn.Module) -> None:
    """Raise ValueError for a model that PEFT has adapted: its layers are not the base's own."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft."):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} of PEFT's: take its adapter out first "
                "with unload(), or keep it with merge_and_unload()"
            )


def refuse_unfit(plan: InjectionPlan, model: nn.Module) -> None:
    """Raise ValueError for a matrix that the variant cannot adapt: so large, there, or with its values."""
    misplaced = plan.variant.misplaced(model, {matrix.name: matrix.role for matrix in plan.matrices})
    for matrix in plan.matrices:
        reason = plan.variant.unfit(matrix.host, plan.hyperparameters_at(matrix))
        reason = reason or misplaced.get(matrix.name)
        if reason := reason or not_collectable(plan.needs, matrix.host):
            (O, I), kind = matrix.shape, matrix.host.kind
            raise ValueError(
                f"{plan.variant.name} cannot adapt {matrix.name}, a {kind} ({O} x {I}): {reason}"
            )


def check_present(model: nn.Module, plan: InjectionPlan) -> None:
    """Raise ValueError where the numbers that an adapter starts from are away, claimed twice or not used."""
    every = base_parameters(model)
    for name, parameter in every.items():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet (a lazy module): run the model once before")
    for matrix in plan.matrices:
        if clash := next(filter(matrix.holds, plan.fully_trained), None):
            raise ValueError(f"{clash} cannot both be adapted and be fully trained; drop it from one of them")
    refuse_trained(model, plan.fully_trained)
    check_called(model, {matrix.tensor for matrix in plan.matrices}, plan.fully_trained)
    tensors = {matrix.name: matrix.host.like for matrix in plan.matrices}
    tensors |= {name: every[name] for name in plan.fully_trained}
    away = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if away and (offloaded(model) or not all(parameter.is_meta for parameter in every.values())):
        raise ValueError(
            f"the numbers of {away} are not in memory (offloaded by accelerate, or left on the meta device): "
            "load the model without offloading it"
        )


def offloaded(model: nn.Module) -> bool:
    """True if accelerate brings weights in when they are used."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def target_matrices(
    cls: type[Variant], model: nn.Module, targets: Targets
) -> tuple[list[TargetMatrix], list[str]]:
    """The matrices that get an adapter, and a sentence for each target that matches nothing."""
    if not cls.adapts:
        return [], []
    known = find_matrices(model)
    chosen, unmatched = choose(known, targets)
    if not chosen and not unmatched:
        raise ValueError(f"nothing is left to adapt of target_modules={targets.target_modules}")
    for matrix in chosen:
        if not (cls.pointwise or matrix.host.sees_input):
            cls.require_weight(f"put on {matrix.name}, which its module reads and does not call")
    if sentence := overlooked(known, targets, chosen):
        warnings.warn(sentence, stacklevel=4)
    return chosen, [missing(model, known, *miss) for miss in unmatched]


def complete_hyperparameters(cls: type[Variant], hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The variant's hyperparameters completed with defaults. ValueError for what no model could take."""
    complete = check_hyperparameters(cls, hyper)
    if complete.get("rank", 1) < 1:
        raise ValueError(f"{cls.name}: rank must be at least 1; got {complete['rank']}")
    init = complete.get("init")
    if init is not None:
        check_init(cls, init)
    return complete


def check_init(cls: type[Variant], name: str) -> None:
    """Raise ValueError for an init that does not exist, or that the variant cannot begin with."""
    try:
        accepted = cls.accepts_init(find_init(name))
    except ValueError:
        accepted = False
    if not accepted:
        choices = unknown("init", name, init_names(cls.accepts_init))
        raise ValueError(f"{cls.name} cannot start from init={name}: {choices}")


def pattern_values(
    cls: type[Variant], chosen: list[TargetMatrix], given: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, dict[str, Any]]:
    """Hyperparameter -> matrix -> value. ValueError for a pattern that fits nothing or a wrong value."""
    found: dict[str, dict[str, Any]] = {}
    for key, patterns in given.items():
        if not patterns or not chosen:
            continue
        if key not in hyperparameters(cls):
            raise ValueError(f"{key}_pattern: {cls.name} has no {key}")
        values = {target: rank_of(value) for target, value in patterns.items()} if key == "rank" else patterns
        for value in values.values():
            for one in value if isinstance(value, Slope) else [value]:
                complete_hyperparameters(cls, {key: one})
        found[key] = by_pattern(chosen, values, f"{key}_pattern")
    return found


def with_depth(
    cls: type[Variant],
    model: nn.Module,
    matrices: list[TargetMatrix],
    hyper: Mapping[str, Any],
    patterns: Patterns,
) -> dict[str, dict[str, Any]]:
    """Patterns with the values that follow from each matrix's depth, where none was given for it."""
    found = {key: dict(values) for key, values in patterns.items()}
    layers: dict[str, int] = {}
    names = (*base_parameters(model), *(matrix.name for matrix in matrices))
    for stack, number in filter(None, map(layer_of, names)):
        layers[stack] = max(layers.get(stack, 0), number + 1)
    for matrix in matrices:
        if place := layer_of(matrix.name):
            for key, value in cls.of_layer(hyper, place[1], layers[place[0]]).items():
                found.setdefault(key, {}).setdefault(matrix.name, value)
    return found


def complete_by_rank(
    cls: type[Variant], matrices: list[TargetMatrix], hyper: Mapping[str, Any], patterns: Patterns
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Hyperparameters and patterns with the values that follow from the rank of each matrix."""
    general = cls.complete(hyper)
    found = {key: dict(values) for key, values in patterns.items()}
    for matrix in matrices:
        given = hyperparameters_at(matrix, hyper, patterns)
        for key, value in cls.complete(given).items():
            if value != given[key] and (value != general[key] or matrix.name in found.get(key, {})):
                found.setdefault(key, {})[matrix.name] = value
    return general, found


def hyperparameters_at(matrix: TargetMatrix, hyper: Mapping[str, Any], patterns: Patterns) -> dict[str, Any]:
    """The hyperparameters of one matrix."""
    return dict(hyper) | {key: own[matrix.name] for key, own in patterns.items() if matrix.name in own}


def build(
    plan: InjectionPlan,
    model: nn.Module,
    *,
    seed: int,
    counter: ForwardCounter,
    statistics: Mapping[str, Statistics] | None = None,
    prior: Sequence[str] = (),
) -> tuple[dict[str, Adapter], nn.Module | None]:
    """Make the adapters and the module that they share, not yet in `model`.

    `statistics` are those of each matrix by name. ValueError for a value that a matrix cannot take.
    """
    variant, hyper = plan.variant, plan.hyperparameters
    own = {matrix.name: plan.hyperparameters_at(matrix) for matrix in plan.matrices}
    greatest = {"rank": max(h["rank"] for h in own.values())} if own and "rank" in hyper else {}
    shapes = {matrix.name: matrix.shape for matrix in plan.matrices}
    first = next((m.host.like for m in plan.matrices), None)
    stored = next(p for p in model.parameters() if p.is_floating_point()) if first is None else first
    like = stored.new_empty(0, dtype=at_least_float32(stored.dtype))
    about = {"model": model, "prior": prior}
    shared = variant.hooks.shared(shapes, like, seed=seed, **{**hyper, **greatest, **about})
    make: Callable[..., Any] = variant
    taken, known = accepted(variant, hyper).keys(), statistics or {}
    adapters = {
        matrix.name: make(
            LayerContext(
                matrix.name, matrix.host, seed, counter, shared, known.get(matrix.name, {}), matrix.role
            ),
            **{key: own[matrix.name][key] for key in taken},
        )
        for matrix in plan.matrices
    }
    return adapters, shared
