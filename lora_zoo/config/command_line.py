"""Habits of the shell, turned into what Hydra reads.

`+variant=dora` and `variant=dora` are the same; `model=` takes a folder or a name on the Hub, `task=` a YAML
file of one's own. Every one of several values in a sweep is treated alike.
"""

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from lora_zoo.config import experiments
from lora_zoo.config.groups import GROUPS, options
from lora_zoo.config.schema import INERT, Model, Settings, Task
from lora_zoo.core.errors import unknown

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
# Hydra's flags by what follows them: nothing, a word that may be missing, a word.
_FLAGS = {
    "alone": ("-h", "--help", *_MULTIRUN, "--resolve", "-r", "--run", "--version", "--hydra-help"),
    "perhaps": ("-i", "--info"),
    "followed": ("-c", "--cfg", "-p", "--package"),
}
_WORDS = {
    **dict.fromkeys(("-c", "--cfg"), ("job", "hydra", "all")),
    **dict.fromkeys(
        ("-i", "--info"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    ),
}


def is_multirun(arguments: list[str]) -> bool:
    return any(flag in arguments for flag in _MULTIRUN)


def overrides(arguments: list[str]) -> list[str]:
    """The arguments that are overrides, not flags of Hydra's own."""
    return [a for a in arguments if _OVERRIDE.fullmatch(a) or a.startswith("~")]


def rewritten(arguments: list[str]) -> list[str]:
    """The arguments with our habits turned into Hydra's. ValueError for one that means nothing."""
    flags = _checked_flags(arguments)
    try:
        return [a if a in flags else _rewritten(a) for a in experiments.expanded(arguments)]
    except (OSError, RuntimeError) as error:  # a path that no system could have
        raise ValueError(str(error)) from error


def _checked_flags(arguments: list[str]) -> set[str]:
    """The arguments that are flags or belong to one. ValueError for what is neither these nor an override."""
    found: set[str] = set()
    before = ""
    for argument in arguments:
        if before in _FLAGS["followed"]:
            _check_word(before, argument)
        elif argument.startswith("-"):
            _check_flag(argument)
        elif before not in _FLAGS["perhaps"] or argument not in _WORDS[before]:
            _check_override(argument)
            before = ""
            continue
        found.add(argument)
        before = argument if argument.startswith("-") else ""
    if before in _FLAGS["followed"]:
        _check_word(before, "")
    return found


def _check_flag(argument: str) -> None:
    known = [flag for kind in _FLAGS.values() for flag in kind]
    flag, equals, word = argument.partition("=")
    if flag not in known:
        raise ValueError(unknown("flag", flag, known))
    if equals:
        raise ValueError(f"write {flag} {word}".strip() + f", not {argument}")


def _check_word(flag: str, word: str) -> None:
    if not word or word.startswith("-") or "=" in word:
        words = ", ".join(_WORDS.get(flag, ("a package",)))
        raise ValueError(f"{flag} wants a word after it: {words}; got {word!r}")
    if flag in _WORDS and word not in _WORDS[flag]:
        raise ValueError(unknown(f"word after {flag}", word, _WORDS[flag]))


def _check_override(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{argument!r} holds bytes that are no UTF-8 text") from error
    if argument.startswith("~"):
        if not re.fullmatch(r"~trainer\.[\w.]+(=.*)?", argument, re.DOTALL):
            raise ValueError(f"{argument}: only keys of trainer can be taken out; give another value instead")
    elif not _OVERRIDE.fullmatch(argument):
        key = argument.partition("=")[0].lstrip("+").partition(".")[0]
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.6)
        example = f"{near[0]}=…" if near else "rank=8"
        raise ValueError(f"{argument!r} is no KEY=VALUE; write for example {example} (--help lists the keys)")
    elif "@" in argument.partition("=")[0]:
        raise ValueError(f"{argument}: packages (@) cannot be chosen; write {argument.partition('@')[0]}=…")


def _rewritten(argument: str) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if not match:
        return argument
    plus, key, value = match.groups()
    if key == "task.template" and not re.match(r"""["'$]""", value):
        value = '"' + value.replace('"', r"\"") + '"'  # Hydra reads braces as a dictionary
    if _OPEN.match(key):
        plus = "++"
    elif key in KEYS:
        plus = ""
    if key in ("model", "task", "experiment"):
        value = ",".join(_choice(key, part) for part in value.split(","))
    if _NESTED.fullmatch(value) or (key in _TARGETS and _PATTERN.fullmatch(value)):
        value = f'"{value}"'  # Hydra's grammar reads nested interpolations and patterns in quotes alone
    return f"{plus}{key}={value}"


def _choice(group: str, value: str) -> str:
    """`value` where it is an option, else the name under which the folder, file or Hub name is now one."""
    if value in options(group):
        return value
    if not value.strip():
        raise ValueError(f"{group}= names nothing; choices: {', '.join(options(group))}")
    node, package = _NODES[group](value)
    alias = re.sub(r"[^\w.-]+", "-", str(_named(group, node)["name"])).strip("-") or group
    if alias in options(group):
        alias += "-" + hashlib.sha256(value.encode()).hexdigest()[:6]
    _named(group, node)["name"] = alias
    ConfigStore.instance().store(group=group, name=alias, node=node, package=package)
    _ALIASES[f"{group}={alias}"] = f"{group}={value}"
    return alias


_ALIASES: dict[str, str] = {}


def originals(overrides: list[str]) -> list[str]:
    """A job's overrides as the user would type them."""
    return [_ALIASES.get(o, o) for o in overrides]


def _model(value: str) -> dict[str, Any]:
    """A model that is no option: a folder, else a name on the Hub unless it looks like a misspelt option."""
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
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"task={value}: the file is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise ValueError(f"task={value}: the file must hold keys and values, as those in conf/task do")
    known = [f.name for f in fields(Task)]
    for key in node:
        if key not in known:
            raise ValueError(f"task={value}: " + unknown("key", key, known))
    for key in ("kind", "path", "metrics", "lr"):
        if node.get(key) is None:
            raise ValueError(f"task={value}: the file must give {key}, as those in conf/task do")
    return {"name": path.stem} | node


def _named(group: str, node: dict[str, Any]) -> dict[str, Any]:
    """The part of a node that holds its name."""
    return node["experiment"] if group == "experiment" else node


_NODES: dict[str, Callable[[str], tuple[dict[str, Any], str | None]]] = {
    "model": lambda value: (_model(value), None),
    "task": lambda value: (_task(value), None),
    "experiment": lambda value: (experiments.read(value), "_global_"),
}
"""Group -> what a value that is no option means, and where in the configuration it goes."""


def swept(arguments: list[str]) -> list[str]:
    """The keys that a sweep gives several values, in the order of the command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides(arguments))
    return [o.key_or_group for o in parsed if o.is_sweep_override()]


def sweep_name(arguments: list[str]) -> str:
    """A readable name for a sweep that ends in the hash of its overrides, as far as they change a result."""
    named = {a: re.split(r"[=./]", a.lstrip("+~"), maxsplit=1)[0] for a in overrides(arguments)}
    given = sorted(a.lstrip("+") for a, name in named.items() if name not in (*INERT, "hydra"))
    asked = [a.partition("=")[2] for a, name in named.items() if name == "experiment"]
    short = "-".join(key.rpartition(".")[2] for key in swept(arguments)) or "one"
    called = asked[-1] if asked else f"sweep-{short}"
    return f"{called}-{hashlib.sha256(chr(10).join(given).encode()).hexdigest()[:8]}"


__all__ = ["GROUPS", "KEYS", "is_multirun", "overrides", "rewritten", "sweep_name", "swept"]
