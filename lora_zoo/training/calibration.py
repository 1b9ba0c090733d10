"""Build a run's adapter from statistics of its training data, once: a run that goes on keeps it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_zoo.config.spec import RunSpec
from lora_zoo.core import init
from lora_zoo.core.seeding import generator
from lora_zoo.formats.native import DESCRIPTION, WEIGHTS, read_description, save_adapter
from lora_zoo.injection.inject import Injection
from lora_zoo.tasks.base import on_device
from lora_zoo.training.resources import ResourcePool, TaskData

START = "start"
"""The folder, within a run's, of the adapter at step 0; deleted with the automatic checkpoints."""


def inject_calibrated(
    spec: RunSpec,
    model: nn.Module,
    data: TaskData,
    arguments: dict[str, Any],
    *,
    resources: ResourcePool,
    folder: Path,
) -> Injection:
    """Adapt `model`; `arguments` are those of `inject`, `folder` is the run's.

    An adapter that needs statistics is saved at step 0. Where that file or the trained adapter is there, no
    statistics are collected again. ValueError where the arguments do not fit the model.
    """

    def injected(**options: Any) -> Injection:
        batches = examples(spec, model, data)
        return resources.inject(model, spec.variant, spec.settings.seed, arguments | options, batches)

    if not spec.needs:
        return injected()
    for kept in (folder / "adapter", folder / START):
        if (kept / DESCRIPTION).is_file():
            saved = read_description(kept)
            patterns = {f"{key}_pattern": values for key, values in saved["patterns"].items()}
            with init.blank():
                injection = injected(target_modules=saved["target_modules"], **patterns)
            injection.load_state_dict(load_file(kept / WEIGHTS))
            return injection
    injection = injected()
    save_adapter(injection, folder / START)
    return injection


def examples(spec: RunSpec, model: nn.Module, data: TaskData) -> Iterator[dict[str, Tensor]]:
    """Training examples in an order that `data_seed` draws, each by itself, so that none is padded."""
    encoded, settings = data.encoded, spec.settings
    order = torch.randperm(len(encoded), generator=generator("calibration", settings.data_seed))
    for number in order[: settings.calibration_examples].tolist():
        yield on_device(data.kind.collate([encoded[number]]), model)
