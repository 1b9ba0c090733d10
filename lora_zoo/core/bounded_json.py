"""JSON of files that others wrote, within bounds of size and depth."""

import json
import re
from pathlib import Path
from typing import Any

from lora_zoo.core.errors import in_one_line

LARGEST, DEEPEST = 1 << 28, 64
"""Bytes of a file, levels of its content."""
_NAME = re.compile(r"(?!\.\.?$)[^/\\\x00-\x1f]{1,255}")


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """The content of a JSON file. OSError where it cannot be read, ValueError where it is none in bounds."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path} is larger than {largest:,} bytes")
    return parse_json(content.decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value that a text holds. ValueError, in one line, for what is no JSON or is nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from error
    except ValueError as error:
        raise ValueError(in_one_line(error)) from error
    level, depth = [value], 0
    while level := [inner for held in level for inner in _inside(held)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    return value


def _inside(held: Any) -> list[Any]:
    inner = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return [value for value in inner if isinstance(value, (dict, list))]


def is_file_name(name: Any) -> bool:
    """True for a text that names a file inside a folder, and leads nowhere else."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
