"""`seed=auto` and `lr=auto` on the command line of a sweep, and the keys of their plans."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_zoo.config.schema import key
from lora_zoo.config.validate import check_group
from lora_zoo.core.errors import unknown

AUTO = {"seed": "seeds", "lr": "rates", "task.lr": "rates"}
"""Key that may be auto -> the group of its plan's keys."""


@dataclass
class Seeds:
    """The keys `seeds.NAME` of a sweep with seed=auto."""

    first: int = key(3, "seeds of every cell before anything is decided", least=3, most=100)
    most: int = key(
        20, "the largest number of seeds of a cell; chosen before the first look", least=3, most=100
    )
    hours: float | None = key(None, "begin no round that would not end within this number of hours", above=0)
    against: str = key(
        "best", "best (each cell with the best), all (every pair), KEY=VALUE (a reference), or claim:ID"
    )
    margin: float = key(
        0.0, "cells that differ by less than the margin are decided to be equivalent", least=0
    )
    step: int = key(1, "seeds that are added at a time to each side of an open comparison", least=1)
    value: str | None = key(None, "the outcome that is compared; default: the experiment's, else test")


@dataclass
class Rates:
    """The keys `rates.NAME` of a sweep with lr=auto."""

    count: int = key(
        8, "rates to begin with, each twice the one before, around the cell's default", least=4, most=64
    )
    budget: int | None = key(
        None, "optimiser steps of all trials of a cell; default: three times those of a run", least=1
    )
    seed: int = key(1000, "the seed of the trials", least=0, most=2**32 - 1)


class _Group(NamedTuple):
    form: type
    of: str
    what: str


_GROUPS = {"seeds": _Group(Seeds, "seed", "the seeds"), "rates": _Group(Rates, "lr", "the learning rate")}


class Plans(NamedTuple):
    """The plan for seeds and for rates, None where they are given; `rate` is the key that is auto."""

    seeds: Seeds | None = None
    rates: Rates | None = None
    rate: str = ""

    @property
    def asked(self) -> list[str]:
        """The words of the command line that ask for plans: seed=auto, lr=auto."""
        return [*(["seed=auto"] if self.seeds else []), *([f"{self.rate}=auto"] if self.rates else [])]


def taken(arguments: Sequence[str]) -> tuple[list[str], Plans]:
    """The arguments without plans, seed=auto being seed=0 and lr=auto the cell's own rate; and the plans.

    ValueError for a key of a plan that is none, is wrong, or stands without seed=auto or lr=auto.
    """
    given = [(argument, *argument.lstrip("+").partition("=")[::2]) for argument in arguments]
    asked, left = _asked(given), []
    plans: dict[str, dict[str, str]] = {group: {} for group in asked}
    for argument, name, value in given:
        group, _, own = name.partition(".")
        if own and group in _GROUPS:
            if group not in asked:
                said = f"{argument.lstrip('+')} belongs to {_GROUPS[group].of}=auto"
                raise ValueError(f"{said}: add it, or leave {argument} out")
            plans[group][own] = value
        elif name not in asked.values():
            left.append(argument)
        elif name == "seed":
            left.append("seed=0")
    made = {group: _plan(group, own) for group, own in plans.items()}
    return left, Plans(**made, rate=asked.get("rates", ""))


def _asked(given: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """Group: the key that is auto. ValueError where auto does not stand alone."""
    found: dict[str, str] = {}
    for _, name, value in given:
        if name in AUTO and "auto" in value.split(","):
            group = AUTO[name]
            rivals = [a.lstrip("+") for a, other, _ in given if AUTO.get(other) == group]
            if len(rivals) > 1 or value != "auto":
                what = _GROUPS[group].what
                raise ValueError(f"{' '.join(rivals)}: auto finds {what} by itself; write {name}=auto alone")
            found[group] = name
    return found


def _plan(group: str, given: dict[str, str]) -> Any:
    form: Any = _GROUPS[group].form
    config, known = OmegaConf.structured(form), [f.name for f in fields(form)]
    for name, value in given.items():
        if name not in known:
            raise ValueError(unknown(f"key of {group}", name, known))
        try:
            config[name] = None if value == "null" else value.strip("'\"")
        except OmegaConfBaseException as error:
            raise ValueError(f"{group}.{name}: {str(error).splitlines()[0]}") from error
    plan = OmegaConf.to_object(config)
    check_group(plan, f"{group}.")
    if isinstance(plan, Seeds) and plan.first > plan.most:
        raise ValueError(f"seeds.first={plan.first} is more than seeds.most={plan.most}")
    return plan


def check_sweep(plans: Plans, overrides: Sequence[str], *, multirun: bool) -> None:
    """ValueError where seed=auto or lr=auto has no sweep, or one with a sweeper of another kind."""
    word = " ".join(plans.asked)
    if not multirun:
        what = "adds seeds to" if plans.seeds else "finds a rate for each of"
        raise ValueError(f"{word} {what} the cells of a sweep: add -m, and say what is compared")
    for override in overrides:
        if override.lstrip("+").startswith(("hydra/sweeper", "hydra.sweeper")):
            raise ValueError(f"{override}: {word} has a sweeper of its own; leave one of them out")
