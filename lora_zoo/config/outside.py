"""YAML files from outside (a user's own, a stranger's): read within bounds, and held to keys of the settings.

Such a file holds data. What would run code is given on the command line, where the user sees it: a variant's
Python file, `trust_remote_code`, a setting of Hydra's.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lora_zoo.config.schema import Settings
from lora_zoo.core.errors import in_one_line, unknown

LARGEST, DEEPEST, MOST = 1 << 18, 20, 20_000
"""Bytes of a file; levels and nodes of its content."""
TARGET = "_target_"
_ON_THE_COMMAND_LINE = ("files", "model.trust_remote_code")
_CODE = dict.fromkeys(("variant", "init", "program"), re.compile(r".*\.py(?::.*)?"))
_CODE["task.metrics"] = re.compile(r".*(?:\.py|[/\\]).*")
"""Keys whose values may name code -> the values that do."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a file. ValueError for what is none, is too large, or refers to itself."""
    try:
        text = path.read_bytes()[: LARGEST + 1]
        _check_bounds(text)
        content: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text.decode())))  # 1e-2: a number
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"the file is no YAML: {in_one_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("the file must hold keys and values")
    return content


def _check_bounds(text: bytes) -> None:
    """Raise ValueError before anything is built of a text that would grow beyond bounds."""
    if len(text) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or number > MOST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels, or holds more than {MOST:,} nodes")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to a part of itself (*{event.anchor}); write the part out")


def check_keys(content: Mapping[str, Any], known: Any = Settings, parent: str = "") -> None:
    """Raise ValueError for a key that is none of the settings', at any depth that the schema knows."""
    names = {f.name: f for f in fields(known)}
    for key, value in content.items():
        where = f"{parent}{key}"
        if key not in names:
            kind = f"key of {parent.rstrip('.')}" if parent else "key"
            raise ValueError(unknown(kind, str(key), names))
        if where in _ON_THE_COMMAND_LINE and value:
            raise ValueError(f"{where} may run code; give it on the command line, not in a file")
        if is_dataclass(names[key].type) and isinstance(value, Mapping):
            check_keys(value, names[key].type, f"{where}.")
        else:
            _check_code(where, value)
            check_is_data(where, value)


def _check_code(dotted: str, value: Any) -> None:
    named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if (code := _CODE.get(dotted)) and any(code.fullmatch(str(name)) for name in named):
        raise ValueError(f"{dotted}={value} names code; give it on the command line, not in a file")


def check_key(dotted: str, values: Any) -> None:
    """Raise ValueError for a dotted key that is none of the settings', or whose values name code."""
    *parents, last = dotted.split(".")
    for value in values:
        content: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            content = {parent: content}
        check_keys(content)


def check_is_data(where: str, value: Any) -> None:
    """Raise ValueError where a value of any form holds the key by which Hydra calls functions."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if TARGET in str(key):
                raise ValueError(f"{where}.{key} cannot be given: a file holds data and calls nothing")
            check_is_data(f"{where}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            check_is_data(where, inner)
    elif isinstance(value, str) and TARGET in value:
        raise ValueError(f"{where}: {TARGET} cannot be given: a file holds data and calls nothing")
