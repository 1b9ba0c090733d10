"""Every value of a command line is composed once before anything heavy is imported.

What Hydra and OmegaConf report over many lines becomes one line that names the nearest match.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_zoo.config.command_line import KEYS
from lora_zoo.config.groups import GROUPS, folder, options
from lora_zoo.config.schema import Settings
from lora_zoo.config.validate import check_folder, resolved
from lora_zoo.core.errors import unknown

TROUBLE = (
    *(HydraException, OmegaConfBaseException, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, OSError, ImportError, RecursionError),
)
"""What Hydra and OmegaConf raise for a command line that they cannot take."""
_MOST = 10_000
_LENGTH = 900


class Mistake(ValueError):
    """A command line that cannot be run, said in one line."""

    def __init__(self, text: str) -> None:
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        super().__init__(line if len(line) <= _LENGTH else f"{line[:_LENGTH]} …")


def check(overrides: list[str], *, multirun: bool) -> list[Settings]:
    """Compose enough jobs that each value of each override is seen once. Mistake where one cannot be."""
    with initialize_config_dir(str(folder()), version_base="1.3"):
        parsed = _parse(overrides)
        keys = {o.key_or_group for o in parsed}
        if {"rank", "budget"} <= keys:
            raise Mistake("budget= finds the rank, so rank= cannot be given as well; drop one of them")
        sweeping = [o.input_line for o in parsed if o.is_sweep_override()]
        if sweeping and not multirun:
            raise Mistake(f"{sweeping[0]} gives several values: add -m to sweep over them")
        for override in parsed:
            _check_override(override)
        _check_hydra([str(o.input_line) for o in parsed if o.is_hydra_override()], parsed)
        return [_compose(job) for job in _representatives(parsed)]


def _check_override(override: Override) -> None:
    key, value = override.key_or_group, override.value()
    if key == "variant.name":
        raise Mistake(f"{override.input_line}: a variant is chosen as a whole; write variant={value}")
    if key in GROUPS and not override.is_sweep_override() and not isinstance(value, (str, QuotedString)):
        names = ", ".join(options(key))
        raise Mistake(f"{override.input_line}: {key} is chosen by name; choices: {names}")
    if key in ("hydra.mode", "hydra.sweeper.params", "hydra.searchpath") or "_target_" in key:
        raise Mistake(f"{key} cannot be given; -m and KEY=VALUE,VALUE make a sweep")


def _check_hydra(given: list[str], parsed: list[Override]) -> None:
    """What is said to Hydra itself is composed once as well."""
    for override in parsed:
        if override.is_hydra_override() and override.is_sweep_override():
            raise Mistake(f"{override.input_line}: a setting of Hydra's takes one value")
    if not given:
        return
    try:
        config = compose("config", overrides=given, return_hydra_config=True)
        places = {"hydra.run.dir": config.hydra.run.dir, "hydra.sweep.dir": config.hydra.sweep.dir}
    except TROUBLE as error:
        raise Mistake(said(error, given)) from error
    for key, place in places.items():
        if any(line.lstrip("+").startswith(f"{key}=") for line in given):
            try:
                check_folder(key, str(place))
            except ValueError as error:
                raise Mistake(str(error)) from error


def _representatives(parsed: list[Override]) -> Iterator[list[str]]:
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override() and not o.is_hydra_override()]
    columns = [_values(o) for o in parsed if o.is_sweep_override()]
    jobs = math.prod(map(len, columns))
    if jobs > _MOST:
        raise Mistake(f"the sweep has {jobs:,} runs, more than {_MOST:,}; give fewer values")
    longest = max(map(len, columns), default=1)
    for row in range(longest):
        yield fixed + [column[row % len(column)] for column in columns]


def _values(override: Override) -> list[str]:
    """The overrides that one swept override stands for. Mistake where they are none or too many."""
    line = override.input_line
    if not override.is_discrete_sweep():
        raise Mistake(f"{line} names no values one by one; write them out, or range(START,STOP,STEP)")
    if override.is_range_sweep():
        sweep = override.value()
        assert isinstance(sweep, RangeSweep)
        start, stop, step = (float(x or 0) for x in (sweep.start, sweep.stop, sweep.step))
        if not step or not all(map(math.isfinite, (start, stop, step))) or (stop - start) / step > _MOST:
            raise Mistake(f"{line} has no end, or more than {_MOST:,} values")
    try:
        values = list(override.sweep_string_iterator())
    except TROUBLE as error:
        raise Mistake(f"{line} cannot be read: {said(error, [])}") from error
    if not values:
        raise Mistake(f"{line} gives no value")
    return [f"{override.get_key_element()}={v}" for v in values]


def _parse(overrides: list[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    parser, parsed = OverridesParser.create(config_loader=loader), []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except TROUBLE as error:
            raise Mistake(f"{override} cannot be read: {_first(error.__cause__ or error)}") from error
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
    except TROUBLE as error:
        raise error if isinstance(error, Mistake) else Mistake(said(error, job)) from error


def _first(error: BaseException) -> str:
    """The first line of an exception, or its kind where it has none."""
    if isinstance(error, RecursionError) or "Recursive interpolation" in str(error):
        return "it refers to itself, or is nested too deeply"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def said(error: BaseException, job: list[str]) -> str:
    """One line for people from an exception of Hydra's or OmegaConf's."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if match := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, given = match.groups()
        return unknown(group, given, options(group)) if group in GROUPS else text.partition("\n")[0]
    if match := re.search(r"Could not override '([^']+)'|specify '([^']+)'|Key '([^']+)' not in", text):
        return _unknown_key(next(g for g in match.groups() if g), text, job)
    where = re.search(r"full_key: (\S+)", f"{text}\n{error.__cause__}")
    theirs = isinstance(error, (HydraException, OmegaConfBaseException))
    first = _first((error.__cause__ or error) if theirs else error)
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
    try:
        config: Any = OmegaConf.select(compose("config", overrides=groups), parent)
    except TROUBLE:
        return list(KEYS)
    return [str(k) for k in config] if isinstance(config, DictConfig) else list(KEYS)


__all__ = ["Mistake", "check", "said"]
