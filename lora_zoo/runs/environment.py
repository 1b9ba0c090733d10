"""The environment of a run: versions, device, threads, and the state of the code."""

import importlib.metadata
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import lora_zoo

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "hydra-core", "wandb", "numpy")


def environment() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "lora_zoo": lora_zoo.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        **_commit(),
    }


def _commit() -> dict[str, Any]:
    """The commit of the checkout that the package lies in; None where it is installed without one."""
    here = Path(lora_zoo.__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return {"commit": None, "dirty": None}
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def peak_memory() -> dict[str, int]:
    """Peak resident memory of the process so far, in bytes; on a GPU also torch's peak allocation."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = {"peak_cuda": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
    return {"peak_rss": peak} | gpu
