"""`seed=auto` on the command line of a sweep, and the keys of its plan."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_zoo.config.schema import key
from lora_zoo.config.validate import check_group
from lora_zoo.core.errors import unknown

_SEED = re.compile(r"\+{0,2}seed=(.*)")
_OF_PLAN = re.compile(r"\+{0,2}seeds\.([\w.]*)=(.*)", re.DOTALL)


@dataclass
class Seeds:
    """The keys `seeds.NAME` of a sweep with seed=auto."""

    first: int = key(3, "seeds of every cell before anything is decided", least=3, most=100)
    most: int = key(
        20, "the greatest number of seeds of a cell; chosen before the first look", least=3, most=100
    )
    hours: float | None = key(None, "begin no round that would not end within so many hours", above=0)
    against: str = key(
        "best", "best (each cell with the best one), all (every pair) or KEY=VALUE, the reference"
    )
    margin: float = key(0.0, "differences within ± margin are decided to be the same", least=0)
    step: int = key(1, "seeds that are added at a time to each side of an open comparison", least=1)
    value: str | None = key(None, "the outcome that is compared; default: the experiment's, else test")


def taken(arguments: Sequence[str]) -> tuple[list[str], Seeds | None]:
    """The arguments without the plan, seed=auto being seed=0, and the plan, None where seeds are given.

    ValueError for a key of the plan that is none, is wrong, or stands without seed=auto.
    """
    automatic = [a for a in arguments if (m := _SEED.fullmatch(a)) and "auto" in m[1].split(",")]
    planned = [m for m in map(_OF_PLAN.fullmatch, arguments) if m]
    if not automatic:
        for match in planned:
            raise ValueError(f"{match[0].lstrip('+')} belongs to seed=auto: add it, or leave {match[0]} out")
        return list(arguments), None
    if sum(bool(_SEED.fullmatch(a)) for a in arguments) > 1 or not automatic[0].endswith("seed=auto"):
        raise ValueError(f"{automatic[0].lstrip('+')}: auto finds the seeds by itself; write seed=auto alone")
    left = ["seed=0" if a == automatic[0] else a for a in arguments if not _OF_PLAN.fullmatch(a)]
    return left, _plan({match[1]: match[2] for match in planned})


def _plan(given: dict[str, str]) -> Seeds:
    config, known = OmegaConf.structured(Seeds), [f.name for f in fields(Seeds)]
    for name, value in given.items():
        if name not in known:
            raise ValueError(unknown("key of seeds", name, known))
        try:
            config[name] = None if value == "null" else value.strip("'\"")
        except OmegaConfBaseException as error:
            raise ValueError(f"seeds.{name}: {str(error).splitlines()[0]}") from error
    seeds = OmegaConf.to_object(config)
    assert isinstance(seeds, Seeds)
    check_group(seeds, "seeds.")
    if seeds.first > seeds.most:
        raise ValueError(f"seeds.first={seeds.first} is more than seeds.most={seeds.most}")
    return seeds


def check_sweep(overrides: Sequence[str], *, multirun: bool) -> None:
    """ValueError where seed=auto has no sweep, or one with a sweeper of another kind."""
    if not multirun:
        raise ValueError("seed=auto adds seeds to the cells of a sweep: add -m, and say what is compared")
    for override in overrides:
        if override.lstrip("+").startswith(("hydra/sweeper", "hydra.sweeper")):
            raise ValueError(f"{override}: seed=auto has a sweeper of its own; leave one of them out")
