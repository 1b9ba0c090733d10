"""Save a Hub-format folder atomically and verify it by reloading."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError

from lora_zoo.core.errors import in_one_line
from lora_zoo.models.base import Base


class Unwritten(RuntimeError):
    """The folder could not be written; nothing of it is left."""


def refuse_to_overwrite(out: Path) -> None:
    """ValueError unless `out` is an empty folder or nothing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; give a folder that does not exist or is empty")


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end; whatever goes wrong inside, it is gone."""
    part = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        yield part
        for path in part.rglob("*"):
            _sync(path)
        part.replace(out)
        _sync(out.parent)
    except Exception as error:
        if not _refused(error):
            raise
        raise Unwritten(f"{out} cannot be written: {in_one_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refused(error: Exception) -> bool:
    """True for an error of the operating system, which Rust code reports as a plain Exception."""
    return isinstance(error, (OSError, SafetensorError)) or "(os error " in str(error)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reloaded(folder: Path, base: Base) -> Any:
    """The saved model as anybody loads it. ValueError where the file lacks a tensor or has one too many."""
    loader = getattr(transformers, base.auto_class)
    network, info = loader.from_pretrained(
        folder, trust_remote_code=base.model.trust_remote_code, output_loading_info=True
    )
    if strange := sorted(
        map(str, (*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]))
    ):
        raise ValueError(f"the merged model does not load as it was saved: {', '.join(strange[:3])}")
    return network


__all__ = ["Unwritten", "refuse_to_overwrite", "reloaded", "whole"]
