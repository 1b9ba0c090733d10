"""`lora-zoo doctor`: check what this machine lacks for a run."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lora_zoo
from lora_zoo.inits import cache
from lora_zoo.terminal import on_the_terminal

LEAST_DISK = 1e9
"""Bytes that ought to be free where results go."""


class CheckUp(NamedTuple):
    """One line: `ok`, `note` (something optional is absent) or `wrong`, and what would be right."""

    state: str
    about: str


def main(arguments: list[str] | None = None) -> None:
    """Print the findings; exit code 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="lora-zoo doctor", description=__doc__)
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder for the results (default: runs)")
    given = parser.parse_args(arguments)
    with on_the_terminal():
        found = list(findings(Path(given.out)))
    for finding in found:
        print(f"{finding.state:<5}  {finding.about}")
    sys.exit(int(any(finding.state == "wrong" for finding in found)))


def findings(out: Path) -> Iterator[CheckUp]:
    yield CheckUp("ok", f"Python {sys.version.split()[0]}, lora_zoo {lora_zoo.__version__}")
    yield from _packages()
    yield from _devices()
    yield from _places(out)
    yield _tracking()
    yield _hub()


def _packages() -> Iterator[CheckUp]:
    """A finding for what does not fit the package's own metadata, and one an extra that is not installed."""
    absent: dict[str, list[str]] = {}
    fitting = 0
    for requirement in map(Requirement, metadata.requires("lora_zoo") or ()):
        extra = _extra(requirement)
        if extra is None and requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if extra is not None:
                absent.setdefault(extra, []).append(requirement.name)
            else:
                yield CheckUp("wrong", f"{requirement} is not installed: pip install '{requirement}'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fitting += extra is None
        else:
            yield CheckUp(
                "wrong", f"{requirement.name} {version} is installed: pip install '{_plain(requirement)}'"
            )
    yield CheckUp("ok", f"{fitting} packages fit what lora_zoo needs")
    for extra, names in absent.items():
        yield CheckUp("note", f"not installed: {', '.join(names)} (pip install 'lora_zoo[{extra}]')")


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to; None for one that is always needed."""
    extras = [
        canonicalize_name(name) for name in metadata.metadata("lora_zoo").get_all("Provides-Extra") or ()
    ]
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return None
    return next((extra for extra in extras if marker.evaluate({"extra": extra})), None)


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _devices() -> Iterator[CheckUp]:
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count()
    yield CheckUp("ok", f"torch {torch.__version__}, {threads} threads on {cores} cores (threads= sets them)")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: trainer.fp16=true"
            name = torch.cuda.get_device_name(number)
            yield CheckUp(
                "ok", f"cuda:{number} {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {half}"
            )
    elif torch.backends.mps.is_available():
        yield CheckUp("ok", "Apple's GPU (mps)")
    else:
        built = "" if torch.version.cuda else "; this torch is built without CUDA"
        yield CheckUp("note", f"no GPU: runs use the CPU{built}")


def _places(out: Path) -> Iterator[CheckUp]:
    places = {"results": out.absolute()}
    kept = cache.folder()
    if kept is None:
        yield CheckUp("note", f"no cache of initialisations ({cache.FOLDER} is empty)")
    else:
        places["cache"] = kept.absolute()
    for what, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free
        except OSError as refusal:
            reason = refusal.strerror or refusal
            yield CheckUp(
                "wrong", f"{what}: nothing can be written to {there}: {reason}; give another folder"
            )
            continue
        state = "ok" if free > LEAST_DISK else "wrong"
        yield CheckUp(state, f"{what}: {place}, where {free / 1e9:.1f} GB are free")


def _tracking() -> CheckUp:
    from lora_zoo.runs.wandb_session import logged_in, mode

    try:
        asked = mode("auto")
    except ValueError as mistake:
        return CheckUp("wrong", str(mistake))
    if asked in ("offline", "disabled"):
        return CheckUp("ok", f"W&B is {asked} by WANDB_MODE")
    if logged_in():
        return CheckUp("ok", "W&B has a login")
    return CheckUp("note", "W&B has no login, so runs are tracked offline (wandb login, or tracking=none)")


def _hub() -> CheckUp:
    from huggingface_hub import constants, get_token

    home = f"models and data of the Hub are kept in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return CheckUp("note", f"{home}; HF_HUB_OFFLINE is set: nothing is downloaded")
    token = "a token is set" if get_token() else "no token: gated models need `hf auth login`"
    return CheckUp("ok", f"{home}; {token}")


if __name__ == "__main__":
    main()
