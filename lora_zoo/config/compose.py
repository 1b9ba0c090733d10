"""Settings from overrides: every value of a command line is composed once before anything heavy is imported.

What Hydra and OmegaConf report over many lines becomes one line that names the nearest match.
"""

import contextlib
import copy
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lora_zoo.config.experiments import KEYS as EXPERIMENT
from lora_zoo.config.groups import GROUPS, OWN_FILES, folder, options
from lora_zoo.config.hydra_keys import check_hydra
from lora_zoo.config.outside import TARGET
from lora_zoo.config.schema import KEYS, Settings
from lora_zoo.config.space import dimension, is_searched, samples
from lora_zoo.config.spec import FLAT, variant_of
from lora_zoo.config.task_defaults import swept_without_effect, unused
from lora_zoo.config.validate import resolved
from lora_zoo.core.errors import unknown

TROUBLE = (
    *(HydraException, OmegaConfBaseException, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, OSError, ImportError, RecursionError),
)
"""Exceptions of Hydra and OmegaConf for a command line that they cannot take."""
EXHAUSTIVE = ("basic", "auto")
"""Sweepers that run every value; any other takes intervals as well."""
_MOST = 10_000
_LENGTH = 900
_CHECKED: dict[tuple[str, ...], Settings] = {}
"""The overrides of a job -> its settings, for the jobs that this process has composed."""


_COMPOSED: dict[tuple[str, ...], tuple[list[Any], DictConfig]] = {}
"""The overrides that choose options -> those that are files of the user's own, and the composition."""


class Mistake(ValueError):
    """A command line that cannot be run, told in one line."""

    def __init__(self, text: str) -> None:
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        super().__init__(line if len(line) <= _LENGTH else f"{line[:_LENGTH]} …")


def check(overrides: Sequence[str], *, multirun: bool) -> list[Settings]:
    """The settings of so many jobs that each value of each override is seen. Mistake where one is wrong."""
    _CHECKED.clear()
    with initialize_config_dir(str(folder()), version_base="1.3"):
        parsed = _parse(overrides)
        for override in parsed:
            _check_override(override, multirun)
        tasks = [o for o in parsed if not o.is_hydra_override()]
        sweeper = [o.value() for o in parsed if o.key_or_group == "hydra/sweeper"]
        searched = is_searched if sweeper and sweeper[-1] not in EXHAUSTIVE else lambda _: False
        jobs = list(_representatives(tasks, searched)) if multirun else [[str(o.input_line) for o in tasks]]
        given = {o.key_or_group for o in parsed}
        idle = []
        for job in jobs:
            _CHECKED[tuple(job)], unused_here = _compose(job)
            idle.append(unused_here)
            _check_budget(_CHECKED[tuple(job)], given)
        if complaint := swept_without_effect([o for o in tasks if o.is_sweep_override()], idle):
            raise Mistake(complaint)
        return [_CHECKED[tuple(job)] for job in jobs]


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """All jobs of a sweep that `check` has let through, as Hydra's sweeper writes them."""
    with initialize_config_dir(str(folder()), version_base="1.3"):
        columns = {o.get_key_element(): _values(o) for o in _parse(overrides) if not o.is_hydra_override()}
    return [list(job) for job in itertools.product(*columns.values())]


def _check_budget(settings: Settings, given: Set[str]) -> None:
    if settings.budget is None:
        return
    found = variant_of(settings).sized_by
    key = found if found in FLAT else f"variant.{found}"
    if key in given:
        raise Mistake(f"budget= finds the {found}, so {key}= cannot be given as well; drop one of them")


def settings_of(config: DictConfig, overrides: Sequence[str]) -> Settings:
    """The settings of a job that Hydra has composed; what `check` has seen is not resolved again.

    ValueError for what cannot be run.
    """
    key = tuple(overrides)
    if key not in _CHECKED:
        _CHECKED[key] = _resolved(config)
    return _CHECKED[key]


def settings_of_job(overrides: Sequence[str]) -> Settings:
    """The settings of a job, while Hydra runs; what `check` has seen is not composed again.

    ValueError for what cannot be run.
    """
    return _CHECKED.get(tuple(overrides)) or _compose(overrides)[0]


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for override in overrides:
        try:
            parsed.append(_parsed(override))
        except TROUBLE as error:
            raise Mistake(f"{override} cannot be read: {_first(error.__cause__ or error)}") from error
    return parsed


@functools.lru_cache(1024)
def _parsed(override: str) -> Override:
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides([override])[0]


def _check_override(override: Override, multirun: bool) -> None:
    key, line = override.key_or_group, str(override.input_line).lstrip("+")
    if TARGET in line:
        raise Mistake(f"{line}: {TARGET} cannot be given; {OWN_FILES}")
    if override.is_sweep_override() and not multirun:
        raise Mistake(f"{line} gives several values: add -m to sweep over them")
    if override.is_hydra_override():
        try:
            check_hydra(override)
        except ValueError as error:
            raise Mistake(str(error)) from error
    elif key in ("variant.name", "program.name"):
        group = key.partition(".")[0]
        raise Mistake(f"{line}: a {group} is chosen as a whole; write {group}={override.value()}")
    elif key in GROUPS and not (override.is_sweep_override() or _is_name(override.value())):
        raise Mistake(f"{line}: {key} is chosen by name; choices: {', '.join(options(key))}")


def _is_name(value: Any) -> bool:
    return isinstance(value, (str, QuotedString))


def _representatives(parsed: list[Override], searched: Callable[[Override], bool]) -> Iterator[list[str]]:
    """Jobs as Hydra's sweeper writes them: as many as the longest list of values has.

    A sweeper that searches runs no product of the values that are `searched`.
    """
    columns = {o.get_key_element(): _samples(o) if searched(o) else _values(o) for o in parsed}
    jobs = math.prod(len(columns[o.get_key_element()]) for o in parsed if not searched(o))
    if jobs > _MOST:
        raise Mistake(f"the sweep has {jobs:,} runs, more than {_MOST:,}; give fewer values")
    for row in range(max(map(len, columns.values()), default=1)):
        yield [column[row % len(column)] for column in columns.values()]


def _values(override: Override) -> list[str]:
    """The overrides that one override of a sweep stands for. Mistake where they are none or too many."""
    key, line = override.get_key_element(), override.input_line
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise Mistake(f"{line} names no values one by one; write them out, or range(START,STOP,STEP)")
    if isinstance(sweep := override.value(), RangeSweep) and not _ends(sweep):
        raise Mistake(f"{line} has no end, or more than {_MOST:,} values")
    try:
        values = list(override.sweep_string_iterator())
    except TROUBLE as error:
        raise Mistake(f"{line} cannot be read: {explain(error)}") from error
    if not values:
        raise Mistake(f"{line} gives no value")
    return [f"{key}={value}" for value in values]


def _samples(override: Override) -> list[str]:
    """Overrides by which one that is searched is checked. Mistake where it is empty or has no logarithm."""
    if isinstance(override.value(), (ChoiceSweep, RangeSweep)):
        return _values(override)
    try:
        dimension(override)
        return [f"{override.get_key_element()}={value}" for value in samples(override)]
    except ValueError as error:
        raise Mistake(str(error)) from error


def _ends(sweep: RangeSweep) -> bool:
    start, stop, step = (float(x or 0) for x in (sweep.start, sweep.stop, sweep.step))
    return bool(step) and all(map(math.isfinite, (start, stop, step))) and (stop - start) / step <= _MOST


def _compose(job: Sequence[str]) -> tuple[Settings, dict[str, str]]:
    """The settings of a job, and what it leaves `unused`."""
    try:
        with _with_values(job) as updated:
            config = updated or compose("config", overrides=list(job))
            return _resolved(config), unused(config)
    except Mistake:
        raise
    except TROUBLE as error:
        raise Mistake(explain(error)) from error


@contextlib.contextmanager
def _with_values(job: Sequence[str]) -> Iterator[DictConfig | None]:
    """Inside, the configuration of a job of plain values; None where Hydra has to compose, and judge, it.

    Hydra takes 0.1 s for a composition. Jobs that choose the same options share one, whose values return.
    """
    parsed = _parse(job)
    chosen = [o for o in parsed if o.key_or_group in GROUPS and not o.is_delete()]
    values = [o for o in parsed if o not in chosen]
    plain = all(o.package is None and o.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD) for o in values)
    if not plain or any("/" in o.key_or_group or o.is_sweep_override() for o in values):
        yield None
        return
    shared = _of_options(chosen)
    content: Any = shared._content
    before = dict(content)
    try:
        for top in {o.key_or_group.partition(".")[0] for o in values} & content.keys():
            content[top] = copy.deepcopy(content[top])
        yield _updated(shared, values)
    finally:
        content.clear()
        content.update(before)


def _updated(config: DictConfig, values: Sequence[Override]) -> DictConfig | None:
    """The configuration with these values; None where it cannot take one."""
    try:
        for o in values:
            OmegaConf.update(config, o.key_or_group, o.value(), merge=True, force_add=o.is_force_add())
    except TROUBLE:
        return None
    return config


def _of_options(chosen: Sequence[Override]) -> DictConfig:
    """The composition of options alone; made again where one is a file that was read anew."""
    asked = tuple(str(o.input_line) for o in chosen)
    store = ConfigStore.instance().repo
    own = [store.get(o.key_or_group, {}).get(f"{o.value()}.yaml") for o in chosen]
    if asked not in _COMPOSED or any(a is not b for a, b in zip(own, _COMPOSED[asked][0], strict=True)):
        _COMPOSED[asked] = own, compose("config", overrides=list(asked))
    return _COMPOSED[asked][1]


def _resolved(config: DictConfig) -> Settings:
    try:
        check_known(config)
        try:
            return resolved(config)
        except TROUBLE:
            for key in sorted(OmegaConf.missing_keys(config)):
                raise ValueError(f"{key} must be given for this choice: add {key}=…") from None
            raise
    except TROUBLE as error:
        raise Mistake(explain(error)) from error


def check_known(config: DictConfig, schema: Any = Settings, parent: str = "") -> None:
    """Raise ValueError for a key that the schema lacks, which `+` has added: nothing would read it."""
    known = {f.name: f.type for f in fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise ValueError(unknown(f"key of {parent}" if parent else "key", key, known))
        if is_dataclass(known[key]):
            check_known(config[key], known[key], key)
    for key in map(str, {} if parent else config.experiment):
        if key not in EXPERIMENT:
            raise ValueError(unknown("key of experiment", key, EXPERIMENT))


def explain(error: BaseException) -> str:
    """One line for people from an exception of Hydra's or OmegaConf's."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MissingConfigException) and error.options is not None:
        file, ours = str(error.missing_cfg_file), tuple(f"{group}/" for group in GROUPS)
        group, _, option = file.partition("/") if file.startswith(ours) else file.rpartition("/")
        return unknown(group, option, error.options)
    theirs = isinstance(error, (HydraException, OmegaConfBaseException))
    cause = (error.__cause__ or error) if theirs else error
    full_key = getattr(cause, "full_key", None) or ""
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return _unknown_key(full_key, cause.parent_node)
    if match := re.search(r"Could not override '([^']+)'|specify '([^']+)'", str(cause)):
        return unknown("key", match[1] or match[2], KEYS)
    if absent := re.search(r"Interpolation key '([^']+)' not found", str(cause)):
        return f"{full_key} refers to {absent[1]}, and there is no such key: give {full_key}=…"
    first, in_text = _first(cause), re.search(r"full_key: (\S+)", str(cause))  # Hydra's own hold a text alone
    full_key = full_key or (in_text[1] if in_text else "")
    return first if full_key in first else f"{full_key}: {first}"


def _unknown_key(full_key: str, siblings: Any) -> str:
    parent, _, leaf = full_key.rpartition(".")
    if not parent:
        return unknown("key", leaf, KEYS)
    return unknown(f"key of {parent}", leaf, map(str, siblings or ()))


def _first(error: BaseException) -> str:
    """The first line of an exception, or its kind where it has none."""
    if isinstance(error, RecursionError) or "Recursive interpolation" in str(error):
        return "it refers to itself, or is nested too deeply"
    lines = (line.strip() for line in str(error).splitlines())
    texts = (line for line in lines if line and not line.endswith("raised while composing config:"))
    return next(texts, type(error).__name__)
