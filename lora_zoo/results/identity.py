"""A run's identity: the hash of everything that can change its result, and a name that a person can read."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_zoo.adapters.adapter import Variant
from lora_zoo.adapters.registry import hyperparameters
from lora_zoo.configuration.settings import INERT, INERT_TRAINER, Settings
from lora_zoo.results.secrets import redacted

_FLAT = ("rank", "alpha", "init", "lora_dropout")
_OF_ADAPTERS = ("target_modules", "exclude_modules", "layers")
_DERIVED = {"rank_pattern": "rank", "alpha_pattern": "alpha", "budget": "rank"}


def identity(settings: Settings, variant: type[Variant]) -> str:
    """Eight hexadecimal digits from the settings, the variant's source and the local data files."""
    return identity_of(asdict(settings), variant)


def identity_of(config: Mapping[str, Any], variant: type[Variant]) -> str:
    """The identity of the settings that a record keeps under `config`."""
    chosen = {k: v for k, v in config.items() if k not in INERT}
    chosen["trainer"] = {k: v for k, v in config["trainer"].items() if k not in INERT_TRAINER}
    known = hyperparameters(variant)
    chosen = {k: v for k, v in chosen.items() if k not in _FLAT or k in known}
    files = [file for file in data_files(config) if file.is_file()]
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    parts = [json.dumps(redacted(chosen), sort_keys=True, default=str), source(variant), *contents]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


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


def source(variant: type[Variant]) -> str:
    """The text of the file that the variant is defined in."""
    try:
        return Path(inspect.getfile(variant)).read_text()
    except (OSError, TypeError):
        return variant.__qualname__  # defined interactively: it has no file


def data_files(config: Mapping[str, Any]) -> list[Path]:
    """The task's local data files; names with wildcards or of the Hub are among them and exist nowhere."""
    task = config["task"]
    return [Path(task["data_dir"] or ".").expanduser() / name for name in task["data_files"].values()]


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
