"""A run's identity: the hash of everything that can change its result."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lora_zoo.config.aliases import modern, original
from lora_zoo.config.schema import INERT, INERT_TRAINER, Settings, Task, file_of
from lora_zoo.config.spec import FLAT, RunSpec, needs_of, variant_of
from lora_zoo.core.adapter import Variant
from lora_zoo.core.hyperparameters import check_hyperparameters, hyperparameters
from lora_zoo.core.program import PROGRAMS, complete_program
from lora_zoo.runs.redact import redacted


def specify(settings: Settings, overrides: Sequence[str] = ()) -> RunSpec:
    """The run that the settings ask for. ValueError where its variant is unknown or cannot be loaded."""
    variant = variant_of(settings)
    settings = completed(settings, variant)
    if settings.merge:
        variant.require_weight("merged: use merge=false")
    identity, parts = identified(asdict(settings), variant)
    return RunSpec(settings, variant, identity, parts, tuple(overrides), needs_of(variant, settings.init))


def completed(settings: Settings, variant: type[Variant]) -> Settings:
    """Settings with the variant's defaults, and with alpha where one rank holds for all matrices.

    ValueError for a hyperparameter that does not exist or has another type.
    """
    own = {key: value for key, value in settings.variant.items() if key != "name"}
    flat = {key: getattr(settings, key) for key in FLAT if key in hyperparameters(variant)}
    given = {key: value for key, value in flat.items() if value != "auto"}
    hyper = check_hyperparameters(variant, given | own)
    if settings.budget is None and not settings.rank_pattern:
        hyper = variant.complete(hyper)
    of_all = {key: hyper.pop(key) for key in flat}
    own = {"name": settings.variant["name"], **hyper}
    return replace(settings, **of_all, variant=own, program=complete_program(settings.program))


def identified(config: Mapping[str, Any], variant: type[Variant]) -> tuple[str, dict[str, Any]]:
    """The identity that a configuration has with today's source and data files, and what it is made of.

    The identity is eight hexadecimal digits. Its parts are hashed apart, so that a later reader can tell what
    has changed: settings and source, 16 digits each, and data, the SHA-256 of each split's local file.
    """
    known, settings = hyperparameters(variant), _effective(config)
    chosen = {k: v for k, v in settings.items() if k not in FLAT or k in known}
    if not (needs_of(variant, config["init"]) or "program" in settings):  # which may look at examples
        chosen.pop("calibration_examples", None)
    if variant.preset_of:  # a preset is the same run as its variant with that init
        chosen["variant"] = {**chosen["variant"], "name": variant.preset_of}
    programs = [PROGRAMS.find(settings["program"]["name"])] if "program" in settings else []
    source, data = "\n".join(map(_source, (variant, *programs))), _data(config)
    parts = {"settings": _hashed(_text(settings), 16), "source": _hashed(source, 16), "data": data}
    return _hashed("\n".join([_text(chosen), source, *data.values()])), parts


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that can change a result, by the names that keys had first."""
    chosen = {k: v for k, v in modern(config).items() if k not in INERT and (v or k != "program")}
    if not chosen["task"].get("metric_arguments"):  # younger than the first identities
        chosen["task"] = {k: v for k, v in chosen["task"].items() if k != "metric_arguments"}
    trainer = {k: v for k, v in config["trainer"].items() if k not in INERT_TRAINER}
    return original(chosen | {"trainer": trainer})


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(redacted(settings), sort_keys=True, default=str)


def _hashed(text: str, digits: int = 8) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _source(made: Any) -> str:
    """The text of the file that a variant or a program stands in."""
    try:
        return Path(inspect.getfile(made)).read_text()
    except (OSError, TypeError):
        return str(made.__qualname__)  # defined interactively: it has no file


def _data(config: Mapping[str, Any]) -> dict[str, str]:
    """Split: the SHA-256 of its local data file, where that is found."""
    task = Task(data_dir=config["task"].get("data_dir"))
    files = {split: file_of(task, name) for split, name in config["task"].get("data_files", {}).items()}
    return {s: hashlib.sha256(path.read_bytes()).hexdigest() for s, path in files.items() if path.is_file()}
