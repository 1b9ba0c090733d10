"""The content of a checkpoint, tried before a run goes on from it: a whole file may still hold nonsense."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.trainer_pt_utils import safe_globals

from lora_zoo.core.bounded_json import read_json
from lora_zoo.training.transformers_trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

LARGEST = 1 << 28
_PROGRESS = {
    "loss": float,
    "total_loss": float,
    "last_logged": int,
    "seconds": list,
    "skipped": list,
    "owed": bool,
    "ranks": dict,
}


def flaw_of_content(
    folder: Path, tensors: Mapping[str, str], progress: str, expected: Mapping[str, Tensor]
) -> str:
    """The first flaw of what the files of a checkpoint hold; "" where a run can go on from them.

    `tensors` are files of tensors by part, `progress` is a file of sums, and `expected` are the adapter's
    tensors as the run has them.
    """
    try:
        _check_steps(folder)
        _check_sums(read_json(folder / progress, LARGEST), progress)
        state = {part: load_file(folder / name) for part, name in tensors.items()}
        _check_shapes(state["adapter"], expected, tensors["adapter"])
        with safe_globals():
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state.pth"):
                held: Any = torch.load(folder / name, map_location="cpu", weights_only=True)
                if not isinstance(held, dict):
                    raise ValueError(f"{name} holds a {type(held).__name__}")
    except ValueError as flaw:
        return str(flaw)
    except Exception as error:  # readers of damaged files raise what they please
        return f"its content cannot be read ({type(error).__name__})"
    return ""


def _check_steps(folder: Path) -> None:
    state, step = read_json(folder / TRAINER_STATE_NAME, LARGEST), int(folder.name.rpartition("-")[2])
    if not isinstance(state, dict) or state.get("global_step") != step:
        raise ValueError(f"{TRAINER_STATE_NAME} is not of step {step}")
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ValueError(f"{TRAINER_STATE_NAME} holds no history")


def _check_sums(held: Any, name: str) -> None:
    for key, form in _PROGRESS.items():
        value = held.get(key) if isinstance(held, dict) else None
        if not isinstance(value, (int, float) if form is float else form):
            raise ValueError(f"{name} holds no {key}")
    if not all(isinstance(number, (int, float)) for number in (*held["seconds"], *held["skipped"])):
        raise ValueError(f"{name} holds times or steps that are no numbers")
    if held["last_logged"] < 0 or any(step < 0 for step in held["skipped"]):
        raise ValueError(f"{name} holds steps below 0")


def _check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    for key in expected:
        if key not in found or found[key].shape != expected[key].shape:
            raise ValueError(f"{name} holds no {key} of the run's shape")
