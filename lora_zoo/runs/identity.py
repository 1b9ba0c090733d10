"""A run's identity: the hash of everything that can change its result."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lora_zoo.config.aliases import modern, original
from lora_zoo.config.quantization import KEYS
from lora_zoo.config.schema import FOLDERS, INERT, INERT_TASK, INERT_TRAINER, Settings, Task, file_of
from lora_zoo.config.spec import FLAT, RunSpec, needs_of, variant_of
from lora_zoo.core.adapter import Variant
from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.generators import GENERATORS, complete_options
from lora_zoo.core.hyperparameters import check_hyperparameters, hyperparameters
from lora_zoo.core.program import complete_program
from lora_zoo.core.statistics import ORIGINAL, of_data
from lora_zoo.formats.folders import adapter_digest, adapter_in
from lora_zoo.metrics import METRICS
from lora_zoo.runs.record import RESULT
from lora_zoo.runs.redact import by_name_and_shape
from lora_zoo.runs.sources import Source, own_files, with_imports
from lora_zoo.runs.together import divided, refuse_divided
from lora_zoo.runs.weights import model_digest

_YOUNGER = (
    *("program", "trial", "task.metric_arguments", "task.by_heart", "task.groups"),
    *("task.chat_template", "model.ignore_mismatched_sizes", "model.device_map", "branch_dtype"),
    *("dropbp", "dropbp_warmup", "dropbp_uniform"),
    *("early_stopping_patience", "early_stopping_threshold", "padding_free", "packing", "replay"),
    *("processes", "fsdp"),
    *("model.quantization", *(f"model.{key}" for key in KEYS)),
)
"""Keys that the first identities lack: unset, they are no part of one."""
COVERS = "with imports"
"""Says in `made_of` what its source covers; older records, without the word, cover `own_files`."""


def specify(settings: Settings, overrides: Sequence[str] = ()) -> RunSpec:
    """The run that the settings ask for. ValueError where its variant is unknown or cannot be loaded."""
    variant = variant_of(settings)
    settings = divided(completed(settings, variant))
    if settings.merge:
        variant.require_weight("merged: use merge=false")
    identity, parts = identified(asdict(settings), variant)
    needs = needs_of(variant, settings.init)
    if ORIGINAL in needs and not settings.model.quantization:
        raise ValueError(
            f"init={settings.init} makes up for the error of a quantised base, and model.quantization=null: "
            "give model.quantization=nf4 or, in plain torch, reference_nf4"
        )
    spec = RunSpec(settings, variant, identity, parts, tuple(overrides), needs)
    refuse_divided(spec)
    return spec


def completed(settings: Settings, variant: type[Variant]) -> Settings:
    """Settings with the variant's defaults and targets, and with alpha where one rank holds everywhere.

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
    of_all["program"] = complete_program(settings.program)
    if settings.target_modules == "auto":
        of_all["target_modules"] = list(variant.targets)
    return replace(settings, **of_all, variant=own)


def identified(config: Mapping[str, Any], variant: type[Variant]) -> tuple[str, dict[str, Any]]:
    """The identity that a configuration has with today's source and data files, and what it is made of.

    The identity is eight hexadecimal digits. Its parts are hashed apart, so that a later reader can tell what
    has changed: settings and source, 16 digits each, and data, the SHA-256 of each split's local file or of
    generated examples, each metric of the user's own, each prior adapter, the start and a local base model.
    What is masked is no part of it, nor what the environment holds.
    """
    config = modern(config)
    data = (
        _data(config)
        | _generated(config["task"])
        | _drawn(config["task"])
        | _metrics(config)
        | _priors(config)
        | _replayed(config)
        | _base(config)
    )
    identity, parts = _identified(config, variant, with_imports, data)
    return identity, {**parts, "covers": COVERS}


def identified_as(record: Mapping[str, Any], variant: type[Variant]) -> tuple[str, dict[str, Any]]:
    """The same of a record's configuration, its source as it was hashed when the record was made."""
    if "covers" in record.get("made_of", {}):
        return identified(record["config"], variant)
    return _identified(modern(record["config"]), variant, own_files, _data(record["config"]))


def _identified(
    config: Mapping[str, Any], variant: type[Variant], source_of: Source, data: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    known, settings = hyperparameters(variant), by_name_and_shape(_effective(config))
    chosen = {k: v for k, v in settings.items() if k not in FLAT or k in known}
    looks = of_data(needs_of(variant, config["init"]))
    if not (looks or "program" in settings):  # which may look at examples
        chosen.pop("calibration_examples", None)
    if variant.preset_of:  # a preset is the same run as its variant with that init
        chosen["variant"] = {**chosen["variant"], "name": variant.preset_of}
    source = source_of(variant, config)
    parts = {"settings": _hashed(_text(settings), 16), "source": _hashed(source, 16), "data": data}
    return _hashed("\n".join([_text(chosen), source, *data.values()])), parts


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a modern configuration that can change a result, by the names that keys had first."""
    chosen = {k: v for k, v in config.items() if k not in INERT and (v or k not in _YOUNGER)}
    for key in ("prior", "start_from"):
        chosen.pop(key, None)  # their content counts, not where they lie
    chosen["task"] = {k: v for k, v in chosen["task"].items() if k not in INERT_TASK}
    for part in ("model", "task"):
        of = chosen[part].items()
        chosen[part] = {k: v for k, v in of if v or type(v) is float or f"{part}.{k}" not in _YOUNGER}
    trainer = {k: v for k, v in config["trainer"].items() if k not in INERT_TRAINER}
    return original(chosen | {"trainer": trainer})


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _hashed(text: str, digits: int = 8) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _priors(config: Mapping[str, Any]) -> dict[str, str]:
    """`prior N`, `start_from`: the hash of the N-th prior adapter and of the start, where they are found.

    The names of data are no part of an identity: the start's hash says that it is one.
    """
    sources = {f"prior {number}": source for number, source in enumerate(config.get("prior") or (), 1)}
    sources |= {"start_from": start} if (start := config.get("start_from")) else {}
    found = {}
    for key, source in sources.items():
        with contextlib.suppress(FileNotFoundError):
            found[key] = adapter_digest(adapter_in(Path(source).expanduser()))
    return found | {key: f"{key} {found[key]}" for key in ("start_from",) if key in found}


def replayed_runs(config: Mapping[str, Any]) -> dict[str, Path]:
    """Source, as it was given -> folder of each run whose examples are seen again."""
    sources = [*filter(None, [config.get("start_from")]), *(config.get("prior") or ())]
    folders = {source: Path(source).expanduser() for source in sources if config.get("replay")}
    return {source: run.parent if run.name == "adapter" else run for source, run in folders.items()}


def _replayed(config: Mapping[str, Any]) -> dict[str, str]:
    """`replay N …`: the task of the N-th run whose examples are seen again, and the hashes of its data."""
    found: dict[str, str] = {}
    for number, run in enumerate(replayed_runs(config).values(), 1):
        with contextlib.suppress(FileNotFoundError, KeyError, TypeError):
            earlier = read_json(run / RESULT)["config"]
            task = {k: v for k, v in modern(earlier)["task"].items() if k not in INERT_TASK}
            data = _data(earlier) | _generated(task)
            asked = by_name_and_shape({"task": task, "seed": earlier.get("data_seed")})
            data["task"] = _hashed(_text(asked), 16)
            found |= {f"replay {number} {name}": f"replay {number} {own}" for name, own in data.items()}
    return found


def _data(config: Mapping[str, Any]) -> dict[str, str]:
    """Split: the SHA-256 of its local data file, where that is found."""
    task = Task(data_dir=config["task"].get("data_dir"))
    files = {split: file_of(task, name) for split, name in config["task"].get("data_files", {}).items()}
    return {s: hashlib.sha256(path.read_bytes()).hexdigest() for s, path in files.items() if path.is_file()}


def _generated(task: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of a few examples of a data set that is made by a function here."""
    if task.get("dataset") not in GENERATORS:
        return {}
    try:
        return {"generated examples": _sample(task["dataset"], json.dumps(dict(task.get("options") or {})))}
    except ValueError:  # options that there are no more
        return {}


def _drawn(task: Mapping[str, Any]) -> dict[str, str]:
    """The rule by which `task.sizes` takes rows of a folder of classes; the first runs took its first."""
    return {"rows": "drawn"} if task.get("sizes") and task.get("dataset") in FOLDERS else {}


@functools.cache
def _sample(name: str, options: str) -> str:
    make, given = GENERATORS.find(name), complete_options(name, json.loads(options))
    drawn = {split: make(split, 16, 0, **given) for split in ("train", "test")}
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def _metrics(config: Mapping[str, Any]) -> dict[str, str]:
    """Metric: the SHA-256 of its Python file, of those that are given by their path."""
    found = {}
    for name in config["task"].get("metrics", ()):
        path = Path(name)
        file = path if path.suffix == ".py" else path / f"{path.name}.py"
        if name not in METRICS and file.is_file():
            found[f"metric {path.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _base(config: Mapping[str, Any]) -> dict[str, str]:
    """The digest of a local base model."""
    base = Path(config["model"]["path"]).expanduser()
    return {"the base model": model_digest(base)} if base.is_dir() else {}
