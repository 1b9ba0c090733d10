"""Build a run's adapter, once: a run that goes on keeps its start or, once it has trained, its end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_zoo.config.spec import RunSpec
from lora_zoo.core import init
from lora_zoo.core.processes import current
from lora_zoo.core.seeding import generator
from lora_zoo.formats.description import DESCRIPTION, WEIGHTS, read_description
from lora_zoo.formats.folders import adapter_in
from lora_zoo.formats.native import read_adapter, save_adapter
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.plan import hyperparameters_at
from lora_zoo.runs.record import Record
from lora_zoo.tasks.base import on_device
from lora_zoo.training.checkpoints import digest
from lora_zoo.training.resources import ResourcePool, TaskData

START = "start"
"""The folder, within a run's, of the adapter at step 0; deleted with the automatic checkpoints."""
HASHES = {"sha256": WEIGHTS, "description": DESCRIPTION}
"""Key of the record's `adapter` -> the file whose SHA-256 it is."""


def inject_calibrated(
    spec: RunSpec,
    model: nn.Module,
    data: TaskData,
    arguments: dict[str, Any],
    *,
    resources: ResourcePool,
    folder: Path,
    trained: bool,
) -> Injection:
    """Adapt `model`; `arguments` are those of `inject`, `folder` is the run's.

    A `trained` adapter is loaded as it ended, with the ranks of its end. One that needs statistics is saved
    at step 0, and they are not collected again. ValueError where the arguments do not fit the model.
    """

    def injected(**options: Any) -> Injection:
        batches = examples(spec, model, data)
        return resources.inject(model, spec.variant, spec.settings.seed, arguments | options, batches)

    saved = folder / ("adapter" if trained else START)
    known = trained or (spec.needs and current().from_first((saved / DESCRIPTION).is_file))
    if known:
        with init.blank():
            injection = injected(**exactly(read_description(saved)))
        injection.load_state_dict(load_file(saved / WEIGHTS))
        return injection
    injection = injected()
    if spec.settings.start_from:
        start_from(injection, spec.settings.start_from)
    if spec.needs and current().leads:
        save_adapter(injection, folder / START)
    return injection


def start_from(injection: Injection, source: str) -> None:
    """Put the values of the adapter that `start_from=` gives into a new one, which trains on from there.

    ValueError where that one is of another variant, on other matrices, of another rank or scale, or above
    other priors.
    """
    saved = read_adapter(injection.model, adapter_in(Path(source).expanduser()))
    compared: list[tuple[str, Any, Any]] = [
        ("variant", saved.plan.variant.name, injection.variant.name),
        ("the number of priors", len(saved.prior), len(injection.prior)),
        ("target_modules", sorted(m.name for m in saved.plan.matrices), sorted(injection.matrices)),
    ]
    for matrix in saved.plan.matrices:
        theirs = saved.plan.hyperparameters_at(matrix)
        ours = hyperparameters_at(matrix, injection.hyper, injection.patterns)
        compared += [(key, theirs.get(key), ours.get(key)) for key in ("rank", "alpha")]
    for what, there, here in compared:
        if there != here:
            raise ValueError(f"start_from={source}: {what} is {_brief(there)} there and {_brief(here)} here")
    state = {**injection.state_dict(), **saved.state} if saved.init_from_base else saved.state
    try:
        injection.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"start_from={source} is another kind of adapter: {error}") from error


def _brief(value: Any) -> str:
    return f"[{value[0]}, … {len(value)} in all]" if isinstance(value, list) and value else str(value)


def exactly(description: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `inject` that give the shapes of a saved adapter, in place of those of the run."""
    instead = dict.fromkeys(("layers", "rank_pattern", "alpha_pattern", "budget"))
    own = {"target_modules": description["target_modules"], "patterns": description["patterns"]}
    return {**description["hyperparameters"], **instead, **own, "exclude_modules": ()}


def has_trained(record: Record) -> bool:
    """True if the run has trained to its end, and its adapter is as it was written."""
    kept, folder = record.content.get("adapter", {}), record.folder / "adapter"
    if "sha256" not in kept or not all((folder / name).is_file() for name in HASHES.values()):
        return False
    found = {key: digest(folder / name)["sha256"] for key, name in HASHES.items()}
    return all(found[key] == kept[key] for key in found.keys() & kept.keys())  # older records have fewer


def examples(spec: RunSpec, model: nn.Module, data: TaskData) -> Iterator[dict[str, Tensor]]:
    """Training examples in an order that `data_seed` draws, each by itself, so that none is padded."""
    encoded, settings = data.encoded, spec.settings
    order = torch.randperm(len(encoded), generator=generator("calibration", settings.data_seed))
    for number in order[: settings.calibration_examples].tolist():
        example = {key: value for key, value in encoded[number].items() if key != "task_ids"}
        yield on_device(data.kind.collate([example]), model)  # the model alone, which knows no tasks
