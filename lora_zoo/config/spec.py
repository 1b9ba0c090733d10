"""A run, specified once: made of the settings of a job, and handed on to all that take part in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_zoo.config.schema import Settings
from lora_zoo.core.hyperparameters import check_hyperparameters, hyperparameters
from lora_zoo.core.user_files import run_files
from lora_zoo.core.variants import VARIANTS

if TYPE_CHECKING:
    from lora_zoo.core.adapter import Variant

FLAT = ("rank", "alpha", "init", "lora_dropout")
"""Hyperparameters of variants that are keys of their own."""
_OF_MATRICES = ("target_modules", "exclude_modules", "layers", "rank_pattern", "alpha_pattern")
_DERIVED = {"rank_pattern": "rank", "alpha_pattern": "alpha", "budget": "rank"}


@dataclass(frozen=True)
class RunSpec:
    """All that a run is; `lora_zoo.runs.identity.specify` makes it."""

    settings: Settings
    variant: "type[Variant]"
    identity: str
    """Eight hexadecimal digits of all that can change the run's result."""
    made_of: dict[str, Any]
    """The parts of the identity, hashed apart."""
    overrides: tuple[str, ...] = ()
    """As the command line gave them, less Hydra's own."""
    needs: tuple[str, ...] = ()
    """The statistics of data from which its adapter is built."""

    @cached_property
    def name(self) -> str:
        return readable_name(self.settings, self.variant)

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        return flat_hyperparameters(self.settings, self.variant)

    @cached_property
    def parts(self) -> Mapping[str, float]:
        """The parts into which the variant divides the training examples, with their shares; {} for none."""
        return self.variant.hooks.parts(**check_hyperparameters(self.variant, self.hyperparameters))

    @cached_property
    def gathers(self) -> str:
        """Its use of a whole batch, which several processes divide; "" for none."""
        return self.variant.hooks.gathers(**check_hyperparameters(self.variant, self.hyperparameters))

    def without_effect(self) -> dict[str, str]:
        """The flat keys that the command line gave to no use, each with the setting that has none for it."""
        given, known = (
            {o.lstrip("+").partition("=")[0] for o in self.overrides},
            hyperparameters(self.variant),
        )
        idle = [name for name, of in ({f: f for f in FLAT} | _DERIVED).items() if of not in known]
        idle += () if self.variant.adapts else _OF_MATRICES
        found = {name: f"variant={self.variant.name}" for name in idle if name in given}
        from lora_zoo.core.statistics import of_data  # it imports torch

        if "calibration_examples" in given and not (of_data(self.needs) or self.settings.program):
            found["calibration_examples"] = f"init={self.settings.init}"
        return found


def variant_of(settings: Settings) -> "type[Variant]":
    """The variant's class; files of the user's own are run first. ValueError where there is none."""
    run_files(settings.files)
    return VARIANTS.find(str(settings.variant.get("name")))


def needs_of(variant: "type[Variant]", init: str) -> tuple[str, ...]:
    """The statistics of data from which a variant is built that begins with `init`, where it has one."""
    from lora_zoo.core.init import statistics_needed  # it needs torch

    return statistics_needed(variant, {"init": init} if "init" in hyperparameters(variant) else {})


def readable_name(settings: Settings, variant: "type[Variant]") -> str:
    """Variant, rank, targets, start, model, task and seed, as far as they say something."""
    known = hyperparameters(variant)
    parts = [variant.name, *([settings.program["name"]] if settings.program else [])]
    if "rank" in known:
        size = f"r{settings.rank}" if settings.budget is None else f"b{settings.budget}"
        parts += [size, *([_targets(settings.target_modules)] if variant.adapts else [])]
    if "init" in known and settings.init not in ("auto", known["init"].default):
        parts.append(settings.init)
    parts += [settings.model.name[:40], *filter(None, [settings.model.quantization])]
    parts += [settings.task.name[:40], f"s{settings.seed}"]
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts))


def _targets(targets: str | list[str]) -> str:
    words = [targets] if isinstance(targets, str) else [str(t) for t in targets]
    text = "".join(words) if all(len(w) == 1 for w in words) else "+".join(words)
    return text if len(text) <= 24 else f"{len(words)}targets"


def flat_hyperparameters(settings: Settings, variant: "type[Variant]") -> dict[str, Any]:
    """The flat keys and the variant's own keys that this variant takes."""
    known = hyperparameters(variant)
    flat = {name: getattr(settings, name) for name in FLAT if name in known}
    found = {"name"} if settings.budget is None else {"name", variant.sized_by}  # the budget finds its size
    return {name: value for name, value in {**flat, **settings.variant}.items() if name not in found}
