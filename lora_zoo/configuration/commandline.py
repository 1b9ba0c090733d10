"""Habits of the shell, turned into what Hydra reads.

`+variant=dora` and `variant=dora` are the same; `model=` takes a folder or a name on the Hub, `task=` a YAML
file of one's own. Every one of several values in a sweep is treated alike.
"""

import hashlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from lora_zoo.adapters.registry import unknown
from lora_zoo.configuration.choices import GROUPS, options
from lora_zoo.configuration.settings import Model, Settings

KEYS = tuple(f.name for f in fields(Settings))
_OVERRIDE = re.compile(r"(\+{0,2})([\w.@/]+)=(.*)", re.DOTALL)
# Dictionaries in which any key may be new; the run checks them against what reads them.
_OPEN = re.compile(
    r"trainer\.|(?:rank|alpha)_pattern(?:\.|$)|task\.(?:sizes|columns|data_files|options|splits)(?:\.|$)"
)
_NESTED = re.compile(r"\$\{[^\"']*\$\{[^\"']*\}[^\"']*\}")
# A regular expression: no list, not quoted, and with a character that names have not.
_PATTERN = re.compile(r"""(?!\[)(?=.*[\\()|*+?^$\[\]{}])[^"']*""")
_TARGETS = ("target_modules", "exclude_modules")
_MULTIRUN = ("-m", "--multirun")


def is_multirun(arguments: list[str]) -> bool:
    return any(flag in arguments for flag in _MULTIRUN)


def overrides(arguments: list[str]) -> list[str]:
    """The arguments that are overrides, not flags of Hydra's own."""
    return [a for a in arguments if _OVERRIDE.fullmatch(a) or a.startswith("~")]


def rewritten(arguments: list[str]) -> list[str]:
    """The arguments with our habits turned into Hydra's. ValueError for a value that means nothing."""
    return [_rewritten(a) for a in arguments]


def _rewritten(argument: str) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if not match:
        return argument
    plus, key, value = match.groups()
    if _OPEN.match(key):
        plus = "++"
    elif key in KEYS:
        plus = ""
    if key in ("model", "task"):
        value = ",".join(_choice(key, part) for part in value.split(","))
    if _NESTED.fullmatch(value) or (key in _TARGETS and _PATTERN.fullmatch(value)):
        value = f'"{value}"'  # Hydra's grammar reads nested interpolations and patterns in quotes alone
    return f"{plus}{key}={value}"


def _choice(group: str, value: str) -> str:
    """`value` where it is an option, else the name under which the folder, file or Hub name is now one."""
    if value in options(group):
        return value
    node = _model(value) if group == "model" else _task(value)
    alias = re.sub(r"[^\w.-]+", "-", str(node["name"])).strip("-") or group
    if alias in options(group):
        alias += "-" + hashlib.sha256(value.encode()).hexdigest()[:6]
    ConfigStore.instance().store(group=group, name=alias, node=node | {"name": alias})
    _ALIASES[f"{group}={alias}"] = f"{group}={value}"
    return alias


_ALIASES: dict[str, str] = {}


def originals(overrides: list[str]) -> list[str]:
    """A job's overrides as the user would type them."""
    return [_ALIASES.get(o, o) for o in overrides]


def _model(value: str) -> dict[str, Any]:
    """A model that is no option: a folder, else a name on the Hub unless it looks like a misspelt option."""
    import difflib

    path = Path(value).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"model={value}: the folder holds no config.json, so it is no model in Hub format"
            )
        return {"name": path.resolve().name, "path": str(path.resolve())}
    if value.startswith((".", "/", "~")) or value.count("/") > 1:
        raise ValueError(f"model={value}: there is no such folder")
    if "/" not in value and difflib.get_close_matches(value, options("model"), n=1, cutoff=0.6):
        raise ValueError(unknown("model", value, options("model")) + ", a folder, or a name on the Hub")
    assert {"name", "path"} <= {f.name for f in fields(Model)}
    return {"name": value.rpartition("/")[2], "path": value}


def _task(value: str) -> dict[str, Any]:
    """A task that is no option: a YAML file of the same form as those in `conf/task`."""
    path = Path(value).expanduser()
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        raise ValueError(unknown("task", value, options("task")) + ", or a YAML file of your own")
    node = yaml.safe_load(path.read_text())
    if not isinstance(node, dict):
        raise ValueError(f"task={value}: the file must hold keys and values, as those in conf/task do")
    return {"name": path.stem} | node


def swept(arguments: list[str]) -> list[str]:
    """The keys that a sweep gives several values, in the order of the command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides(arguments))
    return [o.key_or_group for o in parsed if o.is_sweep_override()]


def sweep_name(arguments: list[str]) -> str:
    """A readable name for a sweep that ends in the hash of its overrides."""
    given = sorted(a for a in overrides(arguments) if not a.startswith(("out=", "hydra.", "tracking")))
    short = "-".join(key.rpartition(".")[2] for key in swept(arguments)) or "one"
    return f"sweep-{short}-{hashlib.sha256(chr(10).join(given).encode()).hexdigest()[:8]}"


__all__ = ["GROUPS", "KEYS", "is_multirun", "overrides", "rewritten", "sweep_name", "swept"]
