"""Habits of the shell, turned into what Hydra reads.

`+variant=dora` and `variant=dora` are the same; `model=` takes a folder or a name on the Hub, `task=` a YAML
file of one's own; a key may have its old name. Every one of several values in a sweep is treated alike.
"""

import argparse
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob

from lora_zoo.config import experiments
from lora_zoo.config.aliases import modern_key, modern_word
from lora_zoo.config.choices import CHOSEN, OWN, choose, own_files, registered_name
from lora_zoo.config.groups import GROUPS, OWN_FILES, options
from lora_zoo.config.schema import INERT, KEYS
from lora_zoo.core.errors import unknown
from lora_zoo.core.variants import VARIANTS

_OVERRIDE = re.compile(r"(\+{0,2})([\w.@/]+)=(.*)", re.DOTALL)
# Dictionaries in which any key may be new; the run checks them against what reads them.
_OPEN = re.compile(
    r"trainer\.|variant\.|program\.|(?:rank|alpha)_pattern(?:\.|$)|"
    r"task\.(?:sizes|columns|data_files|options|splits|metric_arguments)(?:\.|$)"
)
_NESTED = re.compile(r"\$\{[^\"']*\$\{[^\"']*\}[^\"']*\}")
# A regular expression: no list or choice(…), not quoted, and with a character that names have not.
_PATTERN = re.compile(r"""(?!\[|choice\()(?=.*[\\()|*+?^$\[\]{}])[^"']*""")
_GLOB = re.compile(r"glob\(.*\)")
_CHOICE = re.compile(r"choice\((.*)\)")
_TARGETS = ("target_modules", "exclude_modules")
_REFUSED = ("config_path", "config_name", "config_dir", "experimental_rerun", "shell_completion")
"""Flags of Hydra's that would make another program of this one."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags as Hydra's own parser reads them, and the `overrides`. ValueError for a flag that is none."""
    parser: Any = get_args_parser()
    parser.error = _refuse  # instead of leaving the process
    parsed, strange = parser.parse_known_intermixed_args(arguments)
    known = [
        flag for action in parser._actions if action.dest not in _REFUSED for flag in action.option_strings
    ]
    if strange:
        raise ValueError(unknown("flag", strange[0].partition("=")[0], known))
    for name in _REFUSED:
        if getattr(parsed, name):
            raise ValueError(
                f"--{name.replace('_', '-')} cannot be given: {OWN_FILES}; flags: {', '.join(known)}"
            )
    return parsed


def _refuse(message: str) -> NoReturn:
    wrong = re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
    if not wrong:
        raise ValueError(message)
    raise ValueError(unknown(f"word after {wrong[1]}", wrong[2], re.findall(r"[\w-]+", wrong[3])))


def overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments that are overrides, not flags of Hydra's own."""
    return [a for a in arguments if _OVERRIDE.fullmatch(a) or a.startswith("~")]


def rewritten(arguments: Sequence[str]) -> list[str]:
    """The arguments with our habits turned into Hydra's. ValueError for one that means nothing."""
    parsed = parse(arguments)
    for override in parsed.overrides:
        _check_override(override)
    flags = [a for a in arguments if a not in parsed.overrides]
    try:
        expanded = experiments.expanded([*map(_modern, parsed.overrides)], multirun=parsed.multirun)
        return [*flags, *(_rewritten(_modern(a)) for a in expanded), *_files(expanded)]
    except (OSError, RuntimeError) as error:  # a path that no system could have
        raise ValueError(str(error)) from error


def _check_override(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{argument!r} holds bytes that are no UTF-8 text") from error
    key = argument.partition("=")[0]
    if argument.startswith("~"):
        if not re.fullmatch(r"~trainer\.[\w.]+", key):
            raise ValueError(f"{argument}: only keys of trainer can be taken out; give another value instead")
    elif not _OVERRIDE.fullmatch(argument):
        near = difflib.get_close_matches(key.lstrip("+").partition(".")[0], KEYS, n=1, cutoff=0.6)
        example = f"{near[0]}=…" if near else "rank=8"
        raise ValueError(f"{argument!r} is no KEY=VALUE; write for example {example} (--help lists the keys)")
    elif "@" in key:
        raise ValueError(f"{argument}: packages (@) cannot be chosen; write {argument.partition('@')[0]}=…")


def _modern(argument: str) -> str:
    """The override with today's names for its key and its words."""
    match = _OVERRIDE.fullmatch(argument)
    if not match:
        return argument
    plus, key, value = match.groups()
    key = modern_key(key)
    return f"{plus}{key}={_each(value, partial(modern_word, key))}"


def _each(value: str, change: Callable[[str], str]) -> str:
    """The value with each word of its list, or of its choice(…), changed."""
    choice = _CHOICE.fullmatch(value)
    words = ",".join(map(change, (choice[1] if choice else value).split(",")))
    return f"choice({words})" if choice else words


def _rewritten(argument: str) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if not match:
        return argument
    plus, key, value = match.groups()
    if _OPEN.match(key):
        plus = "++"
    elif key in KEYS or key in GROUPS:
        plus = ""
    if key in CHOSEN and _GLOB.fullmatch(value):
        value = ",".join(_matching(key, value))
    if key in CHOSEN or key in OWN:
        choice = choose if key in CHOSEN else registered_name
        value = _each(value, partial(choice, key))
    return f"{plus}{key}={_quoted(key, value)}"


def _matching(group: str, value: str) -> list[str]:
    """The options that Hydra's glob(…) stands for, variants without a YAML among them. ValueError: none."""
    names = sorted(VARIANTS) if group == "variant" else [*options(group)]
    pattern = OverridesParser.create().parse_override(f"{group}={value}").value()
    found: list[str] = pattern.filter(names) if isinstance(pattern, Glob) else []
    if not found:
        raise ValueError(f"{group}={value} matches none of the choices: {', '.join(names)}")
    return found


def _files(arguments: Sequence[str]) -> list[str]:
    """The override that has every job run the Python files of the user's own."""
    matches = filter(None, map(_OVERRIDE.fullmatch, arguments))
    given = [(m[2], c[1] if (c := _CHOICE.fullmatch(m[3])) else m[3]) for m in matches]
    files = dict.fromkeys(file for key, value in given for file in own_files(key, value))
    return [f"files={json.dumps(list(files), ensure_ascii=False)}"] if files else []


def _quoted(key: str, value: str) -> str:
    """The value in quotes where Hydra's grammar would read its braces or its pattern otherwise."""
    if key == "task.template" and not re.match(r"""["'$]""", value):
        value = '"' + value.replace('"', r"\"") + '"'
    if _NESTED.fullmatch(value) or (key in _TARGETS and _PATTERN.fullmatch(value)):
        return f'"{value}"'
    return value


def swept(arguments: Sequence[str]) -> list[str]:
    """The keys that a sweep gives several values, in the order of the command line."""
    parsed = OverridesParser.create().parse_overrides(overrides(arguments))
    return [o.key_or_group for o in parsed if o.is_sweep_override()]


def sweep_name(arguments: Sequence[str]) -> str:
    """A readable name for a sweep that ends in the hash of its overrides, as far as they change a result."""
    named = {a: re.split(r"[=./]", a.lstrip("+~"), maxsplit=1)[0] for a in overrides(arguments)}
    given = sorted(a.lstrip("+") for a, name in named.items() if name not in (*INERT, "hydra"))
    asked = [a.partition("=")[2] for a, name in named.items() if name == "experiment"]
    short = "-".join(key.rpartition(".")[2] for key in swept(arguments)) or "one"
    called = asked[-1] if asked else f"sweep-{short}"
    return f"{called}-{hashlib.sha256(chr(10).join(given).encode()).hexdigest()[:8]}"
