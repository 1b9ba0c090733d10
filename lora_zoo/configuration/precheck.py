"""Every value of a command line is composed once before anything heavy is imported.

What Hydra and OmegaConf report over many lines becomes one line that names the nearest match.
"""

import re
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_zoo.adapters.registry import unknown
from lora_zoo.configuration.choices import GROUPS, folder, options
from lora_zoo.configuration.commandline import KEYS
from lora_zoo.configuration.settings import Settings, resolved


class Mistake(ValueError):
    """A command line that cannot be run, said in one line."""


def check(overrides: list[str], *, multirun: bool) -> list[Settings]:
    """Compose enough jobs that each value of each override is seen once. Mistake where one cannot be."""
    parsed = _parse(overrides)
    keys = {o.key_or_group for o in parsed}
    if {"rank", "budget"} <= keys:
        raise Mistake("budget= finds the rank, so rank= cannot be given as well; drop one of them")
    sweeping = [o.input_line for o in parsed if o.is_sweep_override()]
    if sweeping and not multirun:
        raise Mistake(f"{sweeping[0]} gives several values: add -m to sweep over them")
    with initialize_config_dir(str(folder()), version_base="1.3"):
        return [_compose(job) for job in _representatives(parsed)]


def _representatives(parsed: list[Override]) -> Iterator[list[str]]:
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override() and not o.is_hydra_override()]
    columns = [
        [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()]
        for o in parsed
        if o.is_sweep_override() and o.is_discrete_sweep() and not o.is_hydra_override()
    ]
    longest = max(map(len, columns), default=1)
    for row in range(longest):
        yield fixed + [column[row % len(column)] for column in columns]


def _parse(overrides: list[str]) -> list[Override]:
    parser, parsed = OverridesParser.create(), []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except HydraException as error:
            cause = str(error.__cause__ or error).partition("\n")[0]
            raise Mistake(f"{override} cannot be read: {cause}") from error
    return parsed


def _compose(job: list[str]) -> Settings:
    try:
        config = compose("config", overrides=job)
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise Mistake(f"{missing[0]} must be given for this choice: add {missing[0]}=…")
        for key in config:
            if key not in KEYS:
                raise Mistake(unknown("key", str(key), KEYS))
        return resolved(config)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise error if isinstance(error, Mistake) else Mistake(said(error, job)) from error


def said(error: Exception, job: list[str]) -> str:
    """One line for people from an exception of Hydra's or OmegaConf's."""
    text = str(error)
    if match := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, given = match.groups()
        return unknown(group, given, options(group)) if group in GROUPS else text.partition("\n")[0]
    if match := re.search(r"Could not override '([^']+)'|specify '([^']+)'|Key '([^']+)' not in", text):
        return _unknown_key(next(g for g in match.groups() if g), text, job)
    where = re.search(r"full_key: (\S+)", f"{text}\n{error.__cause__}")
    first = str(error.__cause__ or error).partition("\n")[0].strip()
    return f"{where[1]}: {first}" if where and where[1] not in first else first


def _unknown_key(given: str, text: str, job: list[str]) -> str:
    where = re.search(r"full_key: (\S+)", text)
    full = where[1] if where and where[1].endswith(given) else given
    parent, _, leaf = full.rpartition(".")
    if not parent:
        return unknown("key", leaf, KEYS)
    return unknown(f"key of {parent}", leaf, _children(parent, job))


def _children(parent: str, job: list[str]) -> list[str]:
    """The keys under `parent` with the groups that the command line chose."""
    groups = [o for o in job if o.partition("=")[0] in GROUPS]
    config: Any = OmegaConf.select(compose("config", overrides=groups), parent)
    return [str(k) for k in config] if isinstance(config, DictConfig) else list(KEYS)


__all__ = ["Mistake", "check", "said"]
