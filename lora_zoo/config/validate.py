"""Checks of a run's keys beyond their types: ranges, words, names, columns, files and folders."""

import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lora_zoo.config.quantization import KEYS, SCHEMES
from lora_zoo.config.schema import SPLITS, Model, Settings, Task, file_of
from lora_zoo.config.sized import with_multiples
from lora_zoo.config.spec import variant_of
from lora_zoo.config.template import check_template
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.errors import unknown, unreadable
from lora_zoo.core.generators import GENERATORS, complete_options
from lora_zoo.core.hyperparameters import check_hyperparameters, fits
from lora_zoo.core.program import complete_program
from lora_zoo.core.ranks import Slope, rank_of
from lora_zoo.core.user_files import run_files
from lora_zoo.formats.folders import prior_folders, saved_folder
from lora_zoo.injection.budget import parameters

_OF_FILES = ("data_dir", "data_files", "splits", "config_name")
_LAYERS = re.compile(r"-?\d{1,9}|\d{1,9}-\d{0,9}|random:[1-9]\d{0,8}")
_NAME = re.compile(r"[\w.-]+")
_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def resolved(config: Any) -> Settings:
    """The composed configuration as `Settings`, resolved and checked. ValueError for what cannot be run."""
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings)
    settings = replace(with_multiples(config, settings), task=_with_chat_template(settings.task))
    check(settings)
    if not settings.dry_run:
        _check_files(settings.task)
        prior_folders(settings.prior or ())
        if settings.start_from:
            saved_folder("start_from", settings.start_from)
        check_folder("out", settings.out)
    return settings


def _with_chat_template(task: Task) -> Task:
    """The task with its chat template's text in place of the file, so that the run is identified by it."""
    given = task.chat_template
    if given is None or "{" in given:
        return task
    try:
        return replace(task, chat_template=Path(given).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        said = f"task.chat_template={given}: {unreadable(error)}; give a file with a Jinja template"
        raise ValueError(said) from error


def check(settings: Settings) -> None:
    """Raises ValueError with the key, its value and what would do."""
    check_group(settings)
    check_group(settings.model, "model.")
    check_quantization(settings.model)
    check_group(settings.task, "task.")
    check_group(settings.tracking, "tracking.")
    if settings.steps is not None and settings.epochs is not None:
        raise ValueError(f"steps={settings.steps} and epochs={settings.epochs} exclude each other; give one")
    _check_training(settings)
    if settings.replay and not (settings.start_from or settings.prior):
        raise ValueError(f"replay={settings.replay} has no effect without start_from=RUN or prior=[RUN]")
    if settings.budget is not None:
        parameters(settings.budget)
    _check_alphas(settings)
    for target, rank in settings.rank_pattern.items():
        _check_rank(f"rank_pattern.{target}", rank)
    _check_init(settings.init)
    for key in ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"):
        _check_names(key, getattr(settings, key))
    _check_layers(settings.layers)
    _check_task(settings.task)
    if settings.program:
        _check_program(settings)
    if own := {key: value for key, value in settings.variant.items() if key != "name"}:
        check_hyperparameters(variant_of(settings), own)


def _check_training(settings: Settings) -> None:
    """Raise ValueError for keys that would have no effect, or another, beside each other."""
    if (least := settings.early_stopping_threshold) and settings.early_stopping_patience is None:
        raise ValueError(f"early_stopping_threshold={least} has no effect without early_stopping_patience=…")
    if settings.padding_free and settings.packing:
        raise ValueError(
            "padding_free=true has no effect beside packing=true, whose rows have no padding; drop it"
        )
    if settings.packing and settings.program:
        raise ValueError(
            f"packing=true: program={settings.program['name']} cuts its run into stages by the number of "
            "examples, and rows are fewer; drop one of them, or take padding_free=true"
        )
    one_row = "packing" if settings.packing else "padding_free" if settings.padding_free else ""
    if one_row and (noise := settings.trainer.get("neftune_noise_alpha")):
        raise ValueError(
            f"{one_row}=true: trainer.neftune_noise_alpha={noise} scales its noise by a row's length, "
            "which would be that of all examples of a step; drop one of them"
        )


def check_quantization(model: Model) -> None:
    """Raise ValueError for a key of a scheme that is not the model's."""
    own = SCHEMES[model.quantization].keys if model.quantization else ()
    for key in KEYS:
        given = getattr(model, key)
        if given is not None and given is not False and key not in own:
            names = [name for name, scheme in SCHEMES.items() if key in scheme.keys]
            chosen = f"model.quantization={model.quantization or 'null'}"
            raise ValueError(f"model.{key}={given} has no effect with {chosen}; it is for {', '.join(names)}")


def _check_program(settings: Settings) -> None:
    run_files(settings.files)  # one of which may register it
    complete_program(settings.program)
    name = settings.program["name"]
    if settings.start_from:
        text = f"program={name} has stages, which begin anew; give one of them"
        raise ValueError(f"start_from={settings.start_from}: {text}")
    if settings.prior:
        raise ValueError(
            f"prior={settings.prior}: program={name} has stages, which take no prior adapters yet"
        )


def check_group(group: Any, prefix: str = "") -> None:
    """Each key by what the schema says of it."""
    for f in fields(group):
        key, value = f"{prefix}{f.name}", getattr(group, f.name)
        if not f.metadata or value is None:
            continue
        if f.metadata["filled"] and value in ([], ""):
            wanted = f"one of {', '.join(f.metadata['among'])}" if f.metadata["among"] else "one"
            raise ValueError(f"{key} is empty; give at least {wanted} ({f.metadata['help']})")
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{key} is empty; give a value, or leave it out")
        for where, leaf in _leaves(key, value):
            _check_leaf(where, leaf, f.metadata)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner)
    else:
        yield name, value


def _check_leaf(where: str, value: Any, about: Mapping[str, Any]) -> None:
    if about["among"] and value not in about["among"]:
        raise ValueError(unknown(where, value, about["among"]))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number; got {value}")
    for bound, (holds, words) in _BOUNDS.items():
        limit = about[bound]
        if limit is not None and not holds(value, limit):
            raise ValueError(f"{where} must be {words} {limit:.10g}; got {value}")


def _check_alphas(settings: Settings) -> None:
    for key, alpha in [("alpha", settings.alpha), *_leaves("alpha_pattern", settings.alpha_pattern)]:
        if not fits(alpha, Alpha):
            raise ValueError(
                f"{key} must be a number above 0, a multiple of the rank (2r), or auto; got {alpha!r}"
            )


def _check_rank(where: str, given: Any) -> None:
    try:
        rank = rank_of(given)
    except ValueError as wrong:
        raise ValueError(f"{where}: {wrong}") from wrong
    for end in rank if isinstance(rank, Slope) else (rank,):
        _check_leaf(where, end, Settings.__dataclass_fields__["rank_pattern"].metadata)


def _check_init(init: str) -> None:
    iterated = re.fullmatch(r"pissa_(?:niter|halko)_(\d+)", init)
    if iterated and not 1 <= float(iterated[1]) <= 1000:
        raise ValueError(f"init={init}: the number of iterations must lie between 1 and 1000")


def _check_names(key: str, given: Any) -> None:
    """The words for targets: names and regular expressions."""
    for name in list(given) if isinstance(given, (list, dict)) else [given]:
        if not isinstance(name, str):
            raise ValueError(f"{key} must be a name or a list of names; got {given!r}")
        if not name.strip():
            raise ValueError(f"{key} holds an empty name; got {given!r}")
        if not _NAME.fullmatch(name):
            try:
                re.compile(name)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{key}: {name!r} is no regular expression: {error}") from error


def _check_layers(layers: Any) -> None:
    for item in [] if layers is None else layers if isinstance(layers, list) else [layers]:
        if isinstance(item, bool) or not _LAYERS.fullmatch(str(item)):
            raise ValueError(f"layers: {item!r} is no layer; write for example [0,2-5], 8-, -1 or random:4")


def _check_task(task: Task) -> None:
    for key in ("metrics", "labels"):
        _check_words(f"task.{key}", getattr(task, key) or [])
    if task.labels is not None and len(task.labels) < 2:
        raise ValueError(f"task.labels must hold two labels or more; got {task.labels}")
    for key in ("sizes", "splits"):
        for split in getattr(task, key):
            if split not in SPLITS:
                raise ValueError(unknown(f"split in task.{key}", split, SPLITS))
    if task.by_heart and (idle := [split for split in task.sizes if split != "train"]):
        raise ValueError(
            f"task.sizes.{idle[0]} has no effect: task.by_heart=true judges on the train split; drop it"
        )
    _check_arguments(task)
    _check_columns(task.columns)
    check_template(task.template)


def _check_arguments(task: Task) -> None:
    for metric, given in task.metric_arguments.items():
        if metric not in task.metrics:
            raise ValueError(unknown("metric in task.metric_arguments", metric, task.metrics))
        if not isinstance(given, Mapping):
            raise ValueError(f"task.metric_arguments.{metric} must map arguments to values; got {given!r}")


def _check_words(key: str, words: list[str]) -> None:
    for word in words:
        if not word.strip():
            raise ValueError(f"{key} holds an empty name; got {words}")
        if words.count(word) > 1:
            raise ValueError(f"{key} names {word!r} twice; got {words}")


def _check_columns(columns: Mapping[str, str]) -> None:
    """The columns that the task's type needs are looked for when the data are read."""
    owners: dict[str, str] = {}
    for name, column in columns.items():
        if column in owners:
            raise ValueError(f"task.columns: {owners[column]} and {name} both name the column {column!r}")
        if name == "item":
            raise ValueError("task.columns.item: that name is kept for the example's number; take another")
        owners[column] = name


def _check_files(task: Task) -> None:
    local = task.dataset in ("csv", "json", "parquet", "text", "imagefolder", "audiofolder")
    if task.dataset in GENERATORS:
        _check_generated(task)
    if local and task.data_dir and not Path(task.data_dir).expanduser().is_dir():
        raise ValueError(f"task {task.name}: task.data_dir={task.data_dir} is no folder")
    if local and not (task.data_files or task.data_dir):
        raise ValueError(
            f"task {task.name}: task.dataset={task.dataset} needs files; give task.data_files={{train:…}}"
        )
    for split, name in task.data_files.items():
        if not name.strip():
            raise ValueError(f"task.data_files.{split} is empty; give a file")
        if "*" in name or "://" in name or file_of(task, name).is_file():
            continue
        folder = (
            f"task.data_dir={task.data_dir}" if task.data_dir else "the working folder; give task.data_dir"
        )
        raise ValueError(f"task {task.name}: its {split} file {name} is not in {folder}")


def _check_generated(task: Task) -> None:
    if idle := [key for key in _OF_FILES if getattr(task, key)]:
        raise ValueError(f"task.{idle[0]} has no effect: task.dataset={task.dataset} is generated; drop it")
    complete_options(task.dataset, task.options)


def check_folder(key: str, given: str) -> None:
    """Raises ValueError where no folder could be made at `given`."""
    path = Path(given)
    try:
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{key}={given!r} cannot be a folder: {reason}") from error
    if not nearest.is_dir():
        raise ValueError(f"{key}={given}: {nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{key}={given}: {nearest} cannot be written to; give another folder")
