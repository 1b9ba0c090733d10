"""Folders of saved adapters: where one lies, what it is called, the hash of its own files."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

_OWN = ("adapter.safetensors", "adapter.json", "prior/**/adapter.safetensors", "prior/**/adapter.json")
_PEFT = ("adapter_config.json", "adapter_model.*")


def adapter_in(run: Path) -> Path:
    """The adapter's folder: `adapter` inside a run's folder, else `run` itself."""
    return run / "adapter" if (run / "adapter").is_dir() else run


def adapter_digest(folder: Path) -> str:
    """The SHA-256 of an adapter in a folder of ours or PEFT's. FileNotFoundError where there is none."""
    patterns = _OWN if (folder / "adapter.json").is_file() else _PEFT
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if len(files) < 2:
        raise FileNotFoundError(f"{folder} holds no adapter, ours or PEFT's")
    total = hashlib.sha256()
    for file in files:
        name, digest = file.relative_to(folder).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()


def saved_folder(key: str, source: str) -> Path:
    """The adapter's folder that a key of a run gives. ValueError where there is none."""
    folder = adapter_in(Path(source).expanduser())
    try:
        adapter_digest(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{key}={source}: {error}; give a run's folder, or an adapter's") from error
    return folder


def prior_folders(sources: Sequence[str]) -> dict[str, Path]:
    """Name -> folder of the adapters that `prior=` gives: runs' folders, or folders of ours or PEFT's.

    An adapter is called like its run or folder. ValueError where there is none, or two of one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        folder = saved_folder("prior", source)
        whole = folder.resolve()
        name = re.sub(r"[^\w-]+", "-", whole.parent.name if whole.name == "adapter" else whole.name)
        name = f"prior-{name}" if name in _TAKEN else name
        if name in found:
            raise ValueError(f"prior={source} and {found[name]} are both called {name}; rename one folder")
        found[name] = folder
    return found


_TAKEN = ("default", "settled")
"""Names of a run's own adapters."""
