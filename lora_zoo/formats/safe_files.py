"""Read tensors and JSON from untrusted files: their code never runs."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lora_zoo.core.bounded_json import read_json

LARGEST = 1 << 26  # bytes of a JSON file beside tensors


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickle that holds tensors alone, on the CPU.

    Raises FileNotFoundError, or ValueError in one line for a file that is broken or needs its code to run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    found: Any = _safe(path) if path.suffix == ".safetensors" else _pickled(path)
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, not tensors by name")
    for key in ("state_dict", "model", "model_state_dict", "module"):
        found = found[key] if isinstance(found.get(key), Mapping) else found
    strange = next((name for name, value in found.items() if not isinstance(value, Tensor)), None)
    if strange is not None:
        raise ValueError(f"{path}: {str(strange)[:80]!r} is no tensor")
    for name, tensor in found.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{path}: {str(name)[:80]!r} is sparse, quantised or without numbers")
    return {str(name): tensor.detach() for name, tensor in found.items()}


def _safe(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no safetensors file: {_line(error)}") from error


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is no pickle of tensors alone, and code in it never runs"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no file of torch's: {_line(error)}") from error


def object_in(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError where there is none."""
    try:
        found = read_json(path, LARGEST)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
