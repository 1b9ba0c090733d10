"""A run's identity: the hash of everything that can change its result, and a name that a person can read."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_zoo.core.adapter import Variant
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.config.schema import INERT, INERT_TRAINER, Settings, Task, file_of
from lora_zoo.runs.redact import redacted

_FLAT = ("rank", "alpha", "init", "lora_dropout")
_OF_ADAPTERS = ("target_modules", "exclude_modules", "layers")
_DERIVED = {"rank_pattern": "rank", "alpha_pattern": "alpha", "budget": "rank"}


def identity(settings: Settings, variant: type[Variant]) -> str:
    """Eight hexadecimal digits from the settings, the variant's source and the local data files."""
    return identity_of(asdict(settings), variant)


def identity_of(config: Mapping[str, Any], variant: type[Variant]) -> str:
    """The identity that a recorded configuration has with today's source and data files."""
    return identified(config, variant)[0]


def made_of(config: Mapping[str, Any], variant: type[Variant]) -> dict[str, Any]:
    """What an identity is made of, hashed apart, so that a later reader can tell what has changed.

    settings and source are 16 hexadecimal digits, data holds the SHA-256 of each split's local file.
    """
    return identified(config, variant)[1]


def identified(config: Mapping[str, Any], variant: type[Variant]) -> tuple[str, dict[str, Any]]:
    """`identity_of` and `made_of`, for which source and data files are read once."""
    known, settings = hyperparameters(variant), _effective(config)
    chosen = {k: v for k, v in settings.items() if k not in _FLAT or k in known}
    source, data = _source(variant), _data(config)
    parts = {"settings": _hashed(_text(settings), 16), "source": _hashed(source, 16), "data": data}
    return _hashed("\n".join([_text(chosen), source, *data.values()])), parts


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that can change a result."""
    chosen = {k: v for k, v in config.items() if k not in INERT}
    return chosen | {"trainer": {k: v for k, v in config["trainer"].items() if k not in INERT_TRAINER}}


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(redacted(settings), sort_keys=True, default=str)


def _hashed(text: str, digits: int = 8) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def readable_name(settings: Settings, variant: type[Variant]) -> str:
    """Variant, rank, targets, start, model, task and seed, as far as they say something."""
    known = hyperparameters(variant)
    parts = [variant.name]
    if "rank" in known:
        size = f"r{settings.rank}" if settings.budget is None else f"b{settings.budget}"
        parts += [size, _targets(settings.target_modules)]
    if "init" in known and settings.init != known["init"].default:
        parts.append(settings.init)
    parts += [settings.model.name[:40], settings.task.name[:40], f"s{settings.seed}"]
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts))


def _targets(targets: str | list[str]) -> str:
    words = [targets] if isinstance(targets, str) else [str(t) for t in targets]
    text = "".join(words) if all(len(w) == 1 for w in words) else "+".join(words)
    return text if len(text) <= 24 else f"{len(words)}targets"


def _source(variant: type[Variant]) -> str:
    try:
        return Path(inspect.getfile(variant)).read_text()
    except (OSError, TypeError):
        return variant.__qualname__  # defined interactively: it has no file


def _data(config: Mapping[str, Any]) -> dict[str, str]:
    """Split: the SHA-256 of its local data file, where that is there."""
    task = Task(data_dir=config["task"].get("data_dir"))
    files = {split: file_of(task, name) for split, name in config["task"].get("data_files", {}).items()}
    return {s: hashlib.sha256(path.read_bytes()).hexdigest() for s, path in files.items() if path.is_file()}


def flat_hyperparameters(settings: Settings, variant: type[Variant]) -> dict[str, Any]:
    """The flat keys and the variant's own keys that this variant takes."""
    known = hyperparameters(variant)
    flat = {name: getattr(settings, name) for name in _FLAT if name in known}
    if settings.budget is not None:
        flat.pop("rank", None)  # the budget finds it
    return flat | {name: value for name, value in settings.variant.items() if name != "name"}


def without_effect(settings: Settings, variant: type[Variant], overrides: list[str]) -> list[str]:
    """The flat keys that the command line gave and the variant has no use for."""
    given = {o.lstrip("+").partition("=")[0] for o in overrides}
    needs = {name: name for name in _FLAT} | _DERIVED
    idle = [name for name, of in needs.items() if of not in hyperparameters(variant)]
    idle += () if variant.count else _OF_ADAPTERS
    return [name for name in idle if name in given]
