"""What the keys of a run may hold beyond type and range: names, patterns, columns, a template, a folder."""

import math
import operator
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lora_zoo.config.schema import COLUMNS, KINDS, SPLITS, Settings, Task, file_of
from lora_zoo.core.errors import unknown
from lora_zoo.inject.budget import parameters

ANSWERS = ("target", "label")
_LAYERS = re.compile(r"-?\d{1,9}|\d{1,9}-\d{0,9}")
_NAME = re.compile(r"[\w.-]+")


def resolved(config: Any) -> Settings:
    """The composed configuration as `Settings`, resolved. ValueError for what is out of range."""
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings)
    for group, prefix in ((settings, ""), (settings.model, "model."), (settings.task, "task.")):
        _check_ranges(group, prefix)
    _check_words(settings)
    check(settings)
    if settings.budget is not None:
        parameters(settings.budget)
    if not settings.dry_run:
        _check_files(settings.task)
        check_folder("out", settings.out)
    return settings


def _check_ranges(group: Any, prefix: str) -> None:
    for f in fields(group):
        value = getattr(group, f.name)
        if value is None or isinstance(value, (str, list, dict, bool)) or not f.metadata:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{prefix}{f.name} must be a finite number; got {value}")
        for bound, (fits, words) in _BOUNDS.items():
            limit = f.metadata[bound]
            if limit is not None and not fits(value, limit):
                raise ValueError(f"{prefix}{f.name} must be {words} {limit:.10g}; got {value}")


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def _check_words(settings: Settings) -> None:
    words = [
        ("task.kind", settings.task.kind, KINDS),
        ("model.dtype", settings.model.dtype, ("float32", "bfloat16", "float16", "auto")),
        ("on_nonfinite", settings.on_nonfinite, ("stop", "skip")),
        ("tracking.backend", settings.tracking.backend, ("wandb", "none")),
        ("tracking.mode", settings.tracking.mode, ("auto", "online", "offline", "disabled")),
        *(("eval_splits", split, SPLITS) for split in settings.eval_splits),
    ]
    for name, value, choices in words:
        if value not in choices:
            raise ValueError(unknown(name, value, choices))
    if settings.steps is not None and settings.epochs is not None:
        raise ValueError(f"steps={settings.steps} and epochs={settings.epochs} exclude each other; give one")


def _check_files(task: Task) -> None:
    if task.path in ("csv", "json", "parquet", "text") and not (task.data_files or task.data_dir):
        raise ValueError(
            f"task {task.name}: task.path={task.path} needs files; give task.data_files={{train:…}}"
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


def check(settings: Settings) -> None:
    """Raises ValueError with the key, its value and what would do."""
    _check_texts(settings)
    _check_numbers(settings)
    _check_init(settings.init)
    if settings.target_modules in ("", [], None):
        raise ValueError("target_modules is empty; name at least one role, e.g. target_modules=[q,v]")
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        _check_names(key, getattr(settings, key))
    for key in ("rank_pattern", "alpha_pattern"):
        _check_names(key, list(getattr(settings, key)))
    _check_layers(settings.layers)
    if not settings.eval_splits:
        raise ValueError(f"eval_splits is empty; name at least one of {', '.join(SPLITS)}")
    _check_task(settings.task)


def _check_numbers(settings: Settings) -> None:
    for name in ("variant", "trainer", "rank_pattern", "alpha_pattern"):
        for where, value in _leaves(name, getattr(settings, name)):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{where} must be a finite number; got {value}")
    for where, value in settings.rank_pattern.items():
        if not 1 <= value <= 65536:
            raise ValueError(f"rank_pattern.{where} must lie between 1 and 65536; got {value}")
    for where, alpha in settings.alpha_pattern.items():
        if not alpha > 0:
            raise ValueError(f"alpha_pattern.{where} must be above 0; got {alpha}")


def _check_init(init: str) -> None:
    iterated = re.fullmatch(r"pissa_(?:niter|halko)_(\d+)", init)
    if iterated and not 1 <= float(iterated[1]) <= 1000:
        raise ValueError(f"init={init}: the number of iterations must lie between 1 and 1000")


def _check_texts(settings: Settings) -> None:
    texts = {
        "out": settings.out,
        "init": settings.init,
        "model.name": settings.model.name,
        "model.path": settings.model.path,
        "task.name": settings.task.name,
        "task.path": settings.task.path,
        "tracking.project": settings.tracking.project,
    }
    for key, text in texts.items():
        if not text.strip():
            raise ValueError(f"{key} is empty; give a value")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner)
    else:
        yield name, value


def _check_names(key: str, given: Any) -> None:
    names = given if isinstance(given, list) else [given]
    for name in names:
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
    if layers is None:
        return
    items = layers if isinstance(layers, list) else [layers]
    if not items:
        raise ValueError("layers is empty; write for example [0,2-5], 8- or -1, or leave it out for all")
    for item in items:
        if isinstance(item, bool) or not _LAYERS.fullmatch(str(item)):
            raise ValueError(f"layers: {item!r} is no layer; write for example [0,2-5], 8- or -1")


def _check_task(task: Task) -> None:
    _once("task.metrics", task.metrics)
    if task.labels is not None:
        _once("task.labels", task.labels)
        if len(task.labels) < 2:
            raise ValueError(f"task.labels must hold two labels or more; got {task.labels}")
    _check_splits(task)
    for key in ("data_dir", "terminator"):
        text = getattr(task, key)
        if text is not None and not text.strip():
            raise ValueError(f"task.{key} is empty; give a value, or leave it out")
    _check_columns(task)
    check_template(task, task.columns or None)


def _check_splits(task: Task) -> None:
    for key in ("sizes", "splits"):
        for split in getattr(task, key):
            if split not in SPLITS:
                raise ValueError(unknown(f"split in task.{key}", split, SPLITS))
    for split, size in task.sizes.items():
        if size < 1:
            raise ValueError(f"task.sizes.{split} must be at least 1; got {size}")


def _once(key: str, words: list[str]) -> None:
    if not words:
        raise ValueError(f"{key} is empty; give at least one")
    for word in words:
        if not word.strip():
            raise ValueError(f"{key} holds an empty name; got {words}")
        if words.count(word) > 1:
            raise ValueError(f"{key} names {word!r} twice; got {words}")


def _check_columns(task: Task) -> None:
    if not task.columns:
        return
    for needed in COLUMNS[task.kind]:
        if needed not in task.columns:
            given = ", ".join(task.columns)
            raise ValueError(
                f"task.columns lacks {needed}, which kind={task.kind} needs; it has {given}: "
                f"add task.columns.{needed}=COLUMN"
            )
    owners: dict[str, str] = {}
    for name, column in task.columns.items():
        if column in owners:
            raise ValueError(f"task.columns: {owners[column]} and {name} both name the column {column!r}")
        if name == "item":
            raise ValueError("task.columns.item: that name is kept for the example's number; take another")
        owners[column] = name


def check_template(task: Task, columns: Iterable[str] | None) -> None:
    """Raises ValueError for a field that is no plain name of a column; `columns` may be unknown yet."""
    if COLUMNS[task.kind][0] != "prompt":
        return
    if not (names := _fields(task.template)):
        raise ValueError(f"task.template={task.template!r} names no column; write for example {{prompt}}")
    known = None if columns is None else [c for c in columns if c not in (*ANSWERS, "item")]
    for name in names:
        if name in ANSWERS:
            raise ValueError(
                f"task.template={task.template!r} would tell the model the answer: drop {{{name}}}"
            )
        if known is not None and name not in known:
            raise ValueError("task.template: " + unknown("column", name, known))


def _fields(template: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"task.template={template!r} cannot be read: {error}; write {{{{ for a brace"
        ) from error
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not re.fullmatch(r"[^\W\d]\w*", name)):
            raise ValueError(
                f"task.template={template!r}: a field is the plain name of a column in braces, as {{prompt}}"
            )
    return [name for _, name, _, _ in parts if name is not None]


def check_folder(key: str, given: str) -> None:
    """Raises ValueError where no folder could be made at `given`."""
    path = Path(given)
    try:
        there = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{key}={given!r} cannot be a folder: {reason}") from error
    if not there.is_dir():
        raise ValueError(f"{key}={given}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{key}={given}: {there} cannot be written to; give another folder")


__all__ = ["check", "check_folder", "check_template"]
