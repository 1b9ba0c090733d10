"""Recorded runs as one pandas DataFrame, a row a run.

frame = runs.load("runs/lora_table6-1c28c951")     # folders with runs at any depth, or archives (*.jsonl.gz)
frame.groupby(runs.axes(frame))["test"].agg(["mean", "std", "count"])

First come the columns of `COLUMNS`, then every scalar of the records by its dotted path (`config.…`,
`metrics.test.rouge_l`), then the objects `history`, `updates`, `experiment_about` (what conf/experiment/ says
of the sweep) and `record` (the whole of it). What a run lacks is NaN or None. Times are seconds, sizes bytes.

Trials, runs that settings were chosen by (lr=auto), are no rows: they are shorter, or of other seeds.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.core.errors import in_one_line
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.budget import parameters
from lora_zoo.runs.bits import learned
from lora_zoo.runs.degenerate import degenerate
from lora_zoo.runs.loading import Found, found
from lora_zoo.runs.provenance import contradiction, stale, today

PATHS = {
    "run": "identity",
    "name": "name",
    "state": "state",
    "lr": "config.lr",
    "task_lr": "config.task.lr",
    "weight_decay": "config.trainer.weight_decay",
    "batch_size": "config.batch_size",
    "seed": "seed",
    "data_seed": "data_seed",
    "program": "config.program.name",
    "model": "config.model.name",
    "task": "config.task.name",
    "trainable": "parameters.trainable",
    "total": "parameters.total",
    "adapted": "parameters.adapted",
    "adapter_bytes": "adapter.bytes",
    "load_seconds": "timings.load",
    "step_seconds": "timings.step_median",
    "train_seconds": "timings.train",
    "total_seconds": "timings.total",
    "validation_nll": "likelihood.validation.nll",
    "test_nll": "likelihood.test.nll",
    "zero_shot_validation_nll": "zero_shot_likelihood.validation.nll",
    "zero_shot_test_nll": "zero_shot_likelihood.test.nll",
    "retention_before": "retention.before",
    "retention_after": "retention.after",
    "commit": "environment.commit",
    "dirty": "environment.dirty",
}
TEXTS = ("run", "name", "folder", "adapter", "experiment", "state", "stale", "contradiction", "degenerate")
SETTINGS = (
    *("variant", "program", "rank", "alpha", "scale", "init", "lora_dropout", "target_modules", "layers"),
    "budget",
    *("lr", "task_lr", "weight_decay", "batch_size", "steps", "seed", "data_seed", "model", "task"),
)
OUTCOMES = (
    *("validation", "test", "zero_shot_validation", "zero_shot_test", "majority_validation", "majority_test"),
    *("validation_nll", "test_nll", "zero_shot_validation_nll", "zero_shot_test_nll"),
    *("loss", "trainable", "total", "adapted", "adapter_bytes", "saved_bytes"),
    *("load_seconds", "step_seconds", "train_seconds", "total_seconds", "cpu_share", "peak_memory"),
    *("retention_before", "retention_after", "forgetting", "bits", "bits_per_parameter"),
)
COLUMNS = (*TEXTS, *SETTINGS, "metric", *OUTCOMES, "commit", "dirty")
LEFT_OUT = "lora_zoo: left out"
"""The key of a frame's `attrs` under which stand sentences on files that are no records."""
_WORDS = ("variant", "program", "scale", "init", "target_modules", "layers", "model", "task")
_NUMBERS = (*(c for c in SETTINGS if c not in _WORDS), *OUTCOMES)
_OBJECTS = ("history", "updates")
_UNSCALAR = (
    *_OBJECTS,
    "stages",
    "ranks",
    "routing",
    "deltas",
    "scores",
    "nll",
    "moved",
    "stale",
    "contradiction",
)


def load(*sources: str | Path, trials: bool = False) -> pd.DataFrame:
    """Every run of the sources, or every trial, ordered by name. ValueError where there is none.

    Files that are no record are left out, and named in `attrs[LEFT_OUT]` and in every report.
    """
    read = found(sources)
    return frame_of(read.runs, read.left_out, trials=trials)


def frame_of(runs: Sequence[Found], left_out: Sequence[str] = (), *, trials: bool = False) -> pd.DataFrame:
    """The frame of records that were read already; one that gives no row is left out, too."""
    made, unfit = [], []
    for run in (run for run in runs if bool(run.record["config"].get("trial")) == trials):
        try:
            record = _numbers(run.record)
            made.append((run, record, _row(record, run)))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            where = run.folder or run.record.get("name")
            unfit.append(f"{where} is no record of a run: {type(error).__name__}: {in_one_line(error)}")
    if not made:
        raise ValueError("; ".join(unfit[:3]) or "there is no run")
    frame = _frame([run for run, *_ in made], [record for _, record, _ in made], [row for *_, row in made])
    frame.attrs[LEFT_OUT] = (*left_out, *unfit)
    return frame


def _frame(runs: list[Found], records: list[dict[str, Any]], rows: list[dict[str, Any]]) -> pd.DataFrame:
    named = pd.DataFrame(rows)
    numbers = list(_NUMBERS)
    named[numbers] = named[numbers].apply(pd.to_numeric, errors="coerce")
    flat = pd.json_normalize([_scalars(record) for record in records])
    flat = flat[sorted(set(flat.columns) - set(COLUMNS))]
    objects = {key: [record.get(key, []) for record in records] for key in _OBJECTS}
    objects["experiment_about"] = [record["config"].get("experiment") or {} for record in records]
    objects["record"] = [run.record for run in runs]
    whole = pd.concat([named[list(COLUMNS)], flat, pd.DataFrame(objects)], axis=1)
    texts = [column for column in whole if isinstance(whole[column].dtype, pd.StringDtype)]
    return whole.astype(dict.fromkeys(texts, object)).copy()  # a block a type: parts are taken at once


def _row(record: Mapping[str, Any], run: Found) -> dict[str, Any]:
    config, folder = record["config"], run.folder
    metric = record.get("metric") or next(iter(config["task"].get("metrics") or ["-"]))
    row, now = {name: _value_at(record, path) for name, path in PATHS.items()}, today(record)
    for split in ("validation", "test"):
        row[split] = _value_at(record, f"metrics.{split}.{metric}")
        row[f"zero_shot_{split}"] = _value_at(record, f"zero_shot.{split}.{metric}")
        row[f"majority_{split}"] = _value_at(record, f"majority.{split}.{metric}")
    return row | {
        "folder": None if folder is None else str(folder),
        "adapter": None if run.adapter is None else str(run.adapter),
        "experiment": (config.get("experiment") or {}).get("name", ""),
        "stale": record.get("stale") or stale(record, now),
        "contradiction": record.get("contradiction") or contradiction(record, folder, now),
        "degenerate": "; ".join(degenerate(record).values()),
        "variant": config["variant"]["name"],
        "metric": metric,
        "steps": _steps(record),
        "loss": next((log["loss"] for log in reversed(record.get("history", [])) if "loss" in log), None),
        "cpu_share": _ratio(record.get("timings", {}), "train_cpu", "train_wall"),
        "saved_bytes": _difference(record.get("memory", {}), "saved", "saved_frozen"),
        "peak_memory": _value_at(record, "memory.peak_cuda") or _value_at(record, "memory.peak_rss"),
        "forgetting": _difference(record.get("retention", {}), "after", "before"),
        **learned(record),
        **_of_adapters(record),
    }


def _of_adapters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the adapters used them; as given, where the run ended before it had any."""
    config = record["config"]
    used = record["variant"]["hyperparameters"] if "variant" in record else config
    row = {name: used.get(name) for name in ("rank", "alpha", "init", "lora_dropout")}
    row["scale"] = _scale(record)
    if _value_at(record, "parameters.adapted") == 0:
        return row | dict.fromkeys(("target_modules", "layers", "budget"))
    budget = config.get("budget")
    return row | {
        "target_modules": _text(config.get("target_modules")),
        "layers": None if config.get("layers") is None else _text(config["layers"]),
        "budget": None if budget is None else parameters(budget),
    }


def _scale(record: Mapping[str, Any]) -> Any:
    """The scale s of the updates; a text where matrices have different ones, None where it is not known."""
    about, config = record.get("variant", {}), record["config"]
    scales = about.get("scales")
    if scales is None:  # an older record, in which one alpha and one rank may hold for all matrices
        variant, hyper = VARIANTS.get(about.get("name", "")), about.get("hyperparameters", {})
        if variant is None or config.get("rank_pattern") or config.get("alpha_pattern"):
            return None
        try:
            scales = [variant.scale_with(hyper)]
        except (KeyError, TypeError, ValueError):
            return None
    return scales[0] if len(scales) == 1 else ",".join(f"{s:.4g}" for s in scales) or None


def _steps(record: Mapping[str, Any]) -> Any:
    """Optimiser steps as asked for; as made, where epochs were asked for."""
    config = record["config"]
    if config.get("steps") is not None:
        return config["steps"]
    epochs = config.get("epochs") or config["task"].get("epochs")
    return _value_at(record, "timings.steps") if epochs else config["task"].get("steps")


def _value_at(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _ratio(seconds: Mapping[str, Any], a: str, b: str) -> Any:
    return seconds[a] / seconds[b] if seconds.get(a) and seconds.get(b) else None


def _difference(sizes: Mapping[str, Any], a: str, b: str) -> Any:
    first, second = sizes.get(a), sizes.get(b)
    return None if first is None or second is None else first - second


def _scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its long objects, lists as text."""
    kept = {key: value for key, value in record.items() if key not in _UNSCALAR}
    config = {key: value for key, value in record["config"].items() if key not in ("experiment", "trial")}
    return _with_texts(kept | {"config": config})


def _with_texts(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _with_texts(value) for key, value in tree.items()}
    return _text(tree) if isinstance(tree, list) else tree


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


_NONES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NONES |= {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # W&B's
_MEASURED = (
    *("metrics", "views", "zero_shot", "majority", "history", "updates", "timings", "retention"),
    *("likelihood", "zero_shot_likelihood", "view_likelihood", "groups", "zero_shot_groups"),
)


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with numbers again where JSON has only the name of one (`plain` in record.py)."""
    return {key: _number(value) if key in _MEASURED else value for key, value in record.items()}


def _number(tree: Any) -> Any:
    """The tree with numbers; a part that has no such name is the very one that was given."""
    if isinstance(tree, str):
        return _NONES.get(tree, tree)
    if isinstance(tree, dict):
        changed = {key: new for key, value in tree.items() if (new := _number(value)) is not value}
        return {**tree, **changed} if changed else tree
    if isinstance(tree, list):
        made = [_number(value) for value in tree]
        return tree if all(map(operator.is_, made, tree)) else made
    return tree
