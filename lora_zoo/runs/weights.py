"""The content of a local base model: hashed once for each state of its files, by path, size and time.

The hashes are kept in the folder of the cache (`LORA_ZOO_CACHE`), where one is used.
"""

import contextlib
import functools
import hashlib
from pathlib import Path

from lora_zoo.inits import cache

_OF_A_MODEL = (".safetensors", ".bin", ".pt", ".json", ".model", ".txt", ".py")


def model_digest(folder: Path) -> str:
    """The SHA-256 of a model's folder: of the names and contents of the files that make it."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _OF_A_MODEL and file.is_file())
    told = [f"{file.name} {file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file; not read again while its size and its time are those of the last time."""
    about = path.stat()
    return _digest(str(path.resolve()), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: str, size: int, time: int) -> str:
    home = cache.folder()
    name = hashlib.sha256(repr((path, size, time)).encode()).hexdigest()
    kept = None if home is None else home.parent / "weights" / name
    if kept is not None:
        with contextlib.suppress(OSError):
            if len(digest := kept.read_text()) == 64:
                return digest
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if kept is not None:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(digest)
    return digest
