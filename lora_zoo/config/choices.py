"""Values that are no option: a folder or Hub name of a model, a file of one's own.

A Python file of one's own (`variant=FILE.py:NAME`, and so with the other keys of `OWN`) becomes the name that
it registers, and stands in `files=`, which every job runs.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from lora_zoo.config import experiments
from lora_zoo.config.aliases import modern_key, modern_word, renamed
from lora_zoo.config.groups import option_file, options
from lora_zoo.config.outside import check_keys
from lora_zoo.config.schema import Task
from lora_zoo.core.errors import unknown
from lora_zoo.core.program import PROGRAMS
from lora_zoo.core.user_files import names_in
from lora_zoo.core.variants import VARIANTS

TYPED = "LORA_ZOO_TYPED"
"""The environment variable (for a launcher's workers) from overrides as Hydra knows them to as typed."""


def choose(group: str, value: str) -> str:
    """`value` where it is an option, else the name under which the folder, file or Hub name is now one."""
    if value in options(group):
        return value
    if not value.strip():
        raise ValueError(f"{group}= names nothing; choices: {', '.join(options(group))}")
    node = CHOSEN[group](value)
    package, about = ("_global_", node[group]) if group in node else (None, node)
    name = re.sub(r"[^\w.-]+", "-", str(about["name"])).strip("-") or group
    if name in options(group):
        name += "-" + hashlib.sha256(value.encode()).hexdigest()[:6]
    if group not in ("variant", "program"):  # which are registered under their names
        about["name"] = name
    ConfigStore.instance().store(group=group, name=name, node=node, package=package)
    return _remembered(group, name, value)


def _remembered(key: str, name: str, value: str) -> str:
    os.environ[TYPED] = json.dumps(_typed() | {f"{key}={name}": f"{key}={value}"})
    return name


def originals(overrides: Sequence[str]) -> list[str]:
    """A job's overrides as the user would type them."""
    typed = _typed()
    return [typed.get(o, o) for o in overrides if not o.startswith("files=")]


OWN = ("variant", "init", "program")
"""The keys whose value may be a Python file, with `:NAME` where it registers several."""


def registered_name(key: str, value: str) -> str:
    """The name that the file in `value` registers; `value` itself where it is no file."""
    own = _own(key, value)
    return _remembered(key, own[1], value) if own else value


def own_files(key: str, value: str) -> list[str]:
    """The Python files among the values of a key, separated by commas."""
    found = (_own(key, part) for part in value.split(",")) if key in OWN else ()
    return [str(own[0]) for own in found if own]


def _own(key: str, value: str) -> tuple[Path, str] | None:
    """The file and the name that KEY=FILE.py:NAME mean; None for another value.

    ValueError where the file cannot be, or has no such name.
    """
    file, _, asked = value.strip("\"'").partition(":")
    if not file.endswith(".py"):
        return None
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{key}={value}: there is no such file")
    names = names_in(path)
    if asked not in names and (asked or len(names) != 1):
        found = f"registers {', '.join(names)}" if names else 'has no line like @register("mine")'
        raise ValueError(f"{key}={value}: the file {found}; write {key}={file}:NAME for one of several")
    return path, asked or names[0]


def _typed() -> dict[str, str]:
    typed: dict[str, str] = json.loads(os.environ.get(TYPED, "{}"))
    return typed


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
    return {"name": value.rpartition("/")[2], "path": value}


def _task(value: str) -> dict[str, Any]:
    """A task that is no option: a YAML file of the same form as those in `conf/task`."""
    name, content = option_file("task", value)
    node = renamed(content, modern_key, modern_word, "task.")
    try:
        check_keys(node, Task)
    except ValueError as wrong:
        raise ValueError(f"task={value}: {wrong}") from wrong
    for key in ("type", "dataset", "metrics", "lr"):
        if node.get(key) is None:
            raise ValueError(f"task={value}: the file must give {key}, as those in conf/task do")
    return {"name": name} | node


def _variant(value: str) -> dict[str, Any]:
    """A variant that is no option: one of a file of the user's own; an entry point.

    A YAML file beside the Python file, of the same name, is like those in `conf/variant`.
    """
    if own := _own("variant", value):
        return _with_yaml(*own)
    if value not in VARIANTS:
        raise ValueError(unknown("variant", value, VARIANTS) + ", or a Python file of your own")
    return _with_yaml(VARIANTS.file_of(value), value)


def _program(value: str) -> dict[str, Any]:
    """A program that is no option: one of a file of the user's own; an entry point."""
    if own := _own("program", value):
        return {"name": own[1]}
    if value not in PROGRAMS:
        raise ValueError(unknown("program", value, options("program")) + ", or a Python file of your own")
    return {"name": value}


def _with_yaml(path: Path | None, name: str) -> dict[str, Any]:
    """The node of a variant, with what a YAML file beside its Python file gives."""
    beside = path.with_suffix(".yaml") if path else None
    content = option_file("variant", str(beside))[1] if beside and beside.is_file() else {}
    try:
        check_keys(content)
    except ValueError as wrong:
        raise ValueError(f"{beside}: {wrong}") from wrong
    return content | {"variant": {**(content.get("variant") or {}), "name": name}}


CHOSEN: dict[str, Callable[[str], dict[str, Any]]] = {
    "variant": _variant,
    "program": _program,
    "model": _model,
    "task": _task,
    "experiment": experiments.read,
}
"""Group -> what a value that is no option means."""
