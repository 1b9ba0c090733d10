"""Disk cache of decompositions, keyed by the content of the matrix: a folder of safetensors files.

`LORA_ZOO_CACHE` is the folder (default ~/.cache/lora_zoo; empty or 0: no cache), `LORA_ZOO_CACHE_GB` its
limit (default 4): the least recently used entries go first. All processes share it. Entries are written
atomically, checked by a hash when read, and computed anew where damaged; errors of the disk are ignored.
"""

import contextlib
import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FOLDER, LIMIT = "LORA_ZOO_CACHE", "LORA_ZOO_CACHE_GB"
DEFAULT_GB = 4.0
_VERSION = 1  # raised when the format or a computation changes
_DIGEST = "sha256"


def folder() -> Path | None:
    """The cache's folder; None where it is switched off."""
    given = os.environ.get(FOLDER)
    if given is None:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(home).expanduser() / "lora_zoo" / "svd"
    return Path(given).expanduser() / "svd" if given.strip() not in ("", "0") else None


def key(W_OI: Tensor, how: str) -> str | None:
    """The key of the computation `how` on this matrix and kind of machine; None without a cache.

    Threads, torch and the processor are part of it: each of them may round a decomposition differently.
    """
    if folder() is None or W_OI.is_meta:
        return None
    digest = hashlib.sha256(repr((_VERSION, how, *_machine(), torch.get_num_threads())).encode())
    digest.update(repr((W_OI.device.type, W_OI.dtype, tuple(W_OI.shape), W_OI.stride())).encode())
    digest.update(_bytes(W_OI))
    return digest.hexdigest()


def read(name: str, fields: Collection[str], device: torch.device) -> dict[str, Tensor] | None:
    """The tensors `fields` of an entry; None where there is none, or one that is damaged."""
    path = _path(name)
    try:
        held = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError):  # absent or damaged: computed anew
        return None
    digest = held.pop(_DIGEST, torch.empty(0))
    if set(held) != set(fields) or digest.tolist() != list(_content(held)):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return {field: held[field].to(device) for field in fields}


def write(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep `tensors` under `name`, and remove the least recently used entries beyond the limit."""
    held = {field: tensor.detach().cpu().contiguous() for field, tensor in tensors.items()}
    held[_DIGEST] = torch.tensor(list(_content(held)), dtype=torch.uint8)
    path, part = _path(name), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.write(save(held))
        part.replace(path)
        _evict(path)
    except OSError:
        if part is not None:
            part.unlink(missing_ok=True)


def _path(name: str) -> Path:
    home = folder()
    assert home is not None, "no cache"
    return home / f"{name}.safetensors"


def _limit() -> float:
    try:
        return float(os.environ.get(LIMIT) or DEFAULT_GB) * 1e9
    except ValueError as error:
        raise ValueError(f"{LIMIT} must be a number of gigabytes; got {os.environ[LIMIT]!r}") from error


def _evict(newest: Path) -> None:
    entries = sorted(_entries(newest.parent), reverse=True)
    left = _limit()
    for _, size, path in entries:
        left -= size
        if left < 0 and path != newest:
            path.unlink(missing_ok=True)


def _entries(home: Path) -> Iterator[tuple[float, int, Path]]:
    """Last use, size and path of each entry, also of partial files that a killed process left."""
    for path in home.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            about = path.stat()
            yield about.st_mtime, about.st_size, path


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _content(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(_bytes(tensor))
    return digest.digest()


@functools.cache
def _machine() -> tuple[str, ...]:
    """Versions of torch and the processor, which round differently."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line for line in lines if line.startswith("model name")), model)
    return torch.__version__, torch.backends.cpu.get_cpu_capability(), platform.machine(), model
