"""Python files that belong to no package: the names that they register, their run, their hash."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable
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


def run_file(file: str | Path) -> list[str]:
    """Run a Python file that registers members of any kind, and return their names.

    A file that has not changed is not run again. ValueError where it cannot be run or registers none.
    """
    path = Path(file).expanduser().resolve()
    names = names_in(path)
    if not names:
        raise ValueError(f'{file} registers nothing: it has no line like @register("mine")')
    try:
        _run(path)
    except Exception as error:  # another's file may raise anything
        raise ValueError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    return names


def run_files(files: Iterable[str | Path]) -> None:
    """Run each of the files, as `run_file` does."""
    for file in files:
        run_file(file)


def _run(path: Path) -> None:
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
