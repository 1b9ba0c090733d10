"""Atomic checkpoints: written under a temporary name, hashed, synced, renamed.

`checkpoint-N/manifest.json` names every file with its size and SHA-256. A checkpoint that a crash,
a full disk or a bad sector has damaged does not match it, and the one before is used.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.errors import in_one_line
from lora_zoo.runs.record import sync_folder, write_atomically

_log = logging.getLogger("lora_zoo")
MANIFEST = "manifest.json"
FEW = 1 << 16
"""Bytes: a disk with less left is full (torch does not say why it could not write)."""
STAGING = ".unfinished"
_NAME = re.compile(r"checkpoint-(\d+)")


class Unsaved(RuntimeError):
    """A checkpoint could not be written; the ones before it are as they were."""


@contextlib.contextmanager
def staged(root: Path, step: int) -> Iterator[Path]:
    """Lend a folder for the checkpoint of `step`; afterwards it is in `root`, whole.

    Raises Unsaved where the disk refuses, and then leaves nothing behind.
    """
    staging = root / STAGING
    folder = staging / f"checkpoint-{step}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
        seal(folder)
        shutil.rmtree(root / folder.name, ignore_errors=True)  # one of the same step that was garbled
        folder.rename(root / folder.name)
        sync_folder(root)
    except Exception as error:
        if not (reason := _refusal(error, root)):
            raise
        raise Unsaved(f"the checkpoint of step {step} could not be written: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refusal(error: Exception, root: Path) -> str:
    """The operating system's reason, also where torch or safetensors report it in words of their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = in_one_line(error)
    if not ("PytorchStreamWriter" in text or "unexpected pos" in text or "os error" in text):
        return ""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(root).free
        return f"{os.strerror(errno.ENOSPC) if free < FEW else text} ({free:,} bytes are free)"
    return text


def seal(folder: Path) -> None:
    """Write the manifest of `folder` and sync everything in it to disk."""
    files = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    for name in files:
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")
    sync_folder(folder)


def digest(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def flaw(folder: Path) -> str:
    """The first flaw of a checkpoint; "" if it is whole."""
    try:
        files = read_json(folder / MANIFEST, 1 << 24)["files"]
        for name, expected in files.items():
            if Path(name).name != name:
                return f"{MANIFEST} names a file outside of it: {name!r}"
            if not (folder / name).is_file():
                return f"{name} is missing"
            if digest(folder / name) != expected:
                size = (folder / name).stat().st_size
                return f"{name} is not what was written ({size} bytes of {expected['bytes']})"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return "" if files else f"{MANIFEST} is empty"


def newest(
    root: Path, needs: Sequence[str] = (), of_content: Callable[[Path], str] = lambda _: ""
) -> Path | None:
    """The last checkpoint under `root` that is whole, has the files that it `needs`, and can be used.

    `of_content` says what is wrong with what its files hold.

    A warning names each later one that is not.
    """
    for _, folder in sorted(_steps(root), reverse=True):
        lacking = [f"it has no {name}" for name in needs if not (folder / name).is_file()]
        if not (damage := flaw(folder) or next(iter(lacking), "") or of_content(folder)):
            return folder
        _log.warning("%s is damaged and not used: %s", folder.name, damage)
    return None


def rotate(root: Path, keep: int | None, best: str | None = None) -> None:
    """Delete all but the `keep` last checkpoints, and the best one."""
    if keep:
        for _, folder in sorted(_steps(root))[:-keep]:
            if best is None or folder.name != Path(best).name:
                shutil.rmtree(folder, ignore_errors=True)


def _steps(root: Path) -> Iterator[tuple[int, Path]]:
    for folder in root.glob("checkpoint-*") if root.is_dir() else ():
        if match := _NAME.fullmatch(folder.name):
            yield int(match[1]), folder


__all__ = ["Unsaved", "newest", "rotate", "staged"]
