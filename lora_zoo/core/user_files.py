"""Python files that belong to no package: the names that they register, their run, their hash."""

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

_REGISTERED = re.compile(r"""^(?:@|\w+ = )?[\w.]*register\w*\(\s*["']([\w -]+)["']""", re.MULTILINE)
OWN = "lora_zoo_file_"
"""Begins the name of the module that a user's own file becomes."""


def own_file(member: Any) -> dict[str, str]:
    """`path` and `sha256` of the user's file that made a class or function; {} for one of a package."""
    module = sys.modules.get(member.__module__)
    digest = getattr(module, "sha256_of_file", None)
    return {"path": str(getattr(module, "__file__", "")), "sha256": digest} if digest else {}


def names_in(path: Path) -> list[str]:
    """The names that a Python file registers, read without running it. ValueError where it cannot be read."""
    try:
        return _REGISTERED.findall(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'this is no text'}") from error


def run(path: Path) -> None:
    """Import a file that belongs to no package, again where its content has changed."""
    name = f"{OWN}{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    before = sys.modules.get(name)
    if getattr(before, "sha256_of_file", None) == digest:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, path
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # before it runs: pickling needs it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["sha256_of_file"] = digest
