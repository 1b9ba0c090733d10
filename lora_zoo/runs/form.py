"""The form of a record, to which one from anywhere is held before anything reads it."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from lora_zoo.config.schema import Settings
from lora_zoo.core.bounded_json import is_file_name

_TEXTS = (
    *("name", "identity", "state", "command", "started", "ended", "metric", "stale", "contradiction"),
    "zero_shot_measured_in",
)
_OBJECTS = (
    *("config", "metrics", "zero_shot", "parameters", "timings", "memory", "environment", "adapter", "data"),
    *("variant", "made_of", "error", "metric_facts", "deltas", "scores", "retention", "diverged", "packed"),
    *("likelihood", "zero_shot_likelihood", "view_likelihood", "nll", "ranks", "routing"),
    *("groups", "zero_shot_groups"),
)
_ROWS = ("history", "updates", "stages", "resumed")
_BELOW: dict[str, type] = {
    "config.task": dict,
    "config.variant": dict,
    "config.variant.name": str,
    "config.task.metrics": list,
    "variant.hyperparameters": dict,
    "made_of.data": dict,
    "made_of.source": str,
    "made_of.settings": str,
}
_WORDS: dict[Any, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
_NEEDED = ("config", "config.task", "config.variant", "config.variant.name")


def check_form(record: Mapping[str, Any]) -> None:
    """Raise ValueError for a record whose parts have another form than those of a run, or that leads away."""
    for key in ("name", "identity"):
        if key in record and not is_file_name(record[key]):
            raise ValueError(f"its {key} {str(record[key])[:80]!r} is no name of a folder")
    forms = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_OBJECTS, dict) | dict.fromkeys(_ROWS, list) | _BELOW
    for path, form in forms.items():
        value = _value_at(record, path)
        if value is None and path not in _NEEDED:
            continue
        if not isinstance(value, form):
            raise ValueError(f"{path} must be {_WORDS[form]}; got {str(value)[:80]}")
    _check_rows(record)
    _check_routing(record.get("routing") or {})
    _check_settings(record["config"], Settings, "config.")


def _value_at(record: Any, path: str) -> Any:
    for key in path.split("."):
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _check_rows(record: Mapping[str, Any]) -> None:
    for key in _ROWS:
        if not all(isinstance(row, Mapping) for row in record.get(key) or []):
            raise ValueError(f"{key} must hold objects")
    for key in ("metrics", "zero_shot", "likelihood", "zero_shot_likelihood", "data", "scores", "nll"):
        if not all(isinstance(row, Mapping) for row in (record.get(key) or {}).values()):
            raise ValueError(f"{key} must hold an object for each split")
    for name, changes in (record.get("ranks") or {}).items():
        if not isinstance(changes, list) or not all(map(_is_change, changes)):
            raise ValueError(f"ranks must hold lists of [step, rank]; got {str(changes)[:80]} of {name[:80]}")
    if not all(isinstance(table, list) for table in (record.get("deltas") or {}).values()):
        raise ValueError("deltas must hold lists")


def _check_routing(routing: Mapping[str, Any]) -> None:
    for split, matrices in routing.items():
        known = isinstance(matrices, Mapping) and all(map(_is_routing, matrices.values()))
        if not known:
            wanted = "for each matrix the load of each expert and the entropy"
            raise ValueError(f"routing must hold {wanted}; got {str(matrices)[:80]} of {split[:80]}")


def _is_routing(value: Any) -> bool:
    known = isinstance(value, Mapping) and isinstance(value.get("load"), list)
    numbers = [*value["load"], value.get("entropy")] if known else [None]
    return all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)


def _is_change(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2
    return pair and all(isinstance(part, (int, float)) and math.isfinite(part) for part in value)


def _check_settings(config: Mapping[str, Any], schema: Any, where: str) -> None:
    """Hold what the schema knows to the schema's form; keys of other versions are left alone."""
    for f in fields(schema):
        value = config.get(f.name)
        if value is None:
            continue
        if is_dataclass(f.type):
            _check_part(value, dict, where + f.name)
            _check_settings(value, f.type, f"{where}{f.name}.")
        elif form := _form(f.name, f.type):
            _check_part(value, form, where + f.name)


def _form(name: str, hint: Any) -> type | None:
    """`dict`, `list`, `bool`, or `object` for a plain value; None where any form will do."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = [part for part in (typing.get_args(hint) if union else [hint]) if part is not type(None)]
    known = {typing.get_origin(part) or part for part in parts}
    if known & {dict, list}:
        return next(iter(known & {dict, list}))
    if known == {bool}:
        return bool
    return None if Any in known and name not in ("alpha", "budget") else object


def _check_part(value: Any, form: type, where: str) -> None:
    fits = not isinstance(value, (dict, list)) if form is object else isinstance(value, form)
    if not fits:
        raise ValueError(f"{where} must be {_WORDS.get(form, 'one value')}; got {str(value)[:80]}")
