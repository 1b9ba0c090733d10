"""Judge a model in Hub format by lm-evaluation-harness, an optional package (`lora_zoo[harness]`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lora_zoo.core.errors import reason

FILE = "lm_eval.json"
"""The harness' results, beside the model's weights."""


def harness() -> ModuleType:
    """The package. ValueError where it is not installed."""
    try:
        import lm_eval
    except ImportError as missing:
        raise ValueError(
            f'--evaluate needs lm-evaluation-harness ({reason(missing)}): pip install "lora_zoo[harness]"'
        ) from missing
    found: ModuleType = lm_eval
    return found


def judged(folder: Path, tasks: Sequence[Any], *, trust_remote_code: bool = False) -> list[str]:
    """A line for each value of each task; all results are written to `folder`/lm_eval.json.

    `tasks` are names that the harness knows, or dictionaries of its own form. ValueError where it refuses.
    """
    given = {"pretrained": str(folder), "trust_remote_code": trust_remote_code}
    where = "cuda" if torch.cuda.is_available() else "cpu"
    own: dict[str, Any] = {"model_args": given, "tasks": list(tasks), "device": where, "log_samples": False}
    try:
        found = harness().simple_evaluate(model="hf", **own)
    except Exception as error:  # the harness and the data sets that it loads raise what they please
        raise ValueError(f"--evaluate: {reason(error)}") from error
    results: dict[str, dict[str, Any]] = found["results"]
    (folder / FILE).write_text(json.dumps(results, indent=1, default=str) + "\n")
    return [
        f"{task}: {key.partition(',')[0]} {value:.4g}"
        for task, values in results.items()
        for key, value in values.items()
        if isinstance(value, float)
    ]
