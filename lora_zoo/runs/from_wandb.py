"""The frame of runs from Weights & Biases, for who has no access to the folders.

frame = load_wandb("my-team/lora_zoo", group="sweep-rank-seed-1ab8b7b0")

W&B holds settings, results, curves and the largest singular values; scores of examples stay in the
folders, and what a run learns of itself after its tracker is closed (total time, peak memory) is missing.
"""

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.config.schema import Settings
from lora_zoo.core.bounded_json import is_file_name, read_json
from lora_zoo.core.errors import in_one_line
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.frame import frame_of
from lora_zoo.runs.loading import Found, checked, order
from lora_zoo.runs.record import SCHEMA
from lora_zoo.runs.tracking import STEP, TRACKED

_KEYS = tuple(field.name for field in fields(Settings))
_STATES = {"running": "running", "pending": "running", "failed": "failed", "finished": "done"}
_NAME = re.compile(r"(?P<name>.+)-(?P<identity>[0-9a-f]{8})")


def load_wandb(project: str, *, group: str | None = None, api: Any = None) -> pd.DataFrame:
    """The runs of `entity/project`, of one sweep where `group` is given; of a run begun again, the last.

    Runs of others in the project are passed over. ValueError where none is ours, or W&B refuses. `api` is
    another `wandb.Api()`.
    """
    import wandb

    try:
        service = api or wandb.Api()
        runs = list(service.runs(project, filters={"group": group} if group else {}))
        read = {run.name: _read(run) for run in runs if _is_ours(run)}
    except (wandb.errors.Error, wandb.errors.CommError) as error:
        raise ValueError(f"W&B does not give the runs of {project}: {in_one_line(error)}") from error
    if not read:
        among = f" in the group {group}" if group else ""
        raise ValueError(f"none of the {len(runs)} runs of {project}{among} is one of lora_zoo")
    records = [record for record in read.values() if isinstance(record, dict)]
    left_out = [said for said in read.values() if isinstance(said, str)]
    return frame_of([Found(record, None) for record in sorted(records, key=order)], left_out)


def _read(run: Any) -> dict[str, Any] | str:
    """The record of a run, or the sentence that says why it is none."""
    try:
        return checked(record_of(run), run.name)
    except (ValueError, LookupError, TypeError, AttributeError) as wrong:
        return f"{run.name} is no record of a run: {in_one_line(wrong)}"


def record_of(run: Any) -> dict[str, Any]:
    """A run of W&B's public API in the words of result.json."""
    config = {key: run.config[key] for key in _KEYS if key in run.config}
    summary = run.summary_metrics
    named = _NAME.fullmatch(run.name)
    record = {
        "schema": SCHEMA,
        **(named.groupdict() if named else {"name": run.name}),
        "state": _STATES.get(run.state, "interrupted"),
        "config": config,
        "seed": config["seed"],
        "data_seed": config["data_seed"],
        "metric": config["task"]["metrics"][0],
        "variant": _variant(config),
    }
    record |= _unflattened(key for key in summary.items() if key[0].split("/")[0] in TRACKED)
    if "made_of" in record:
        record["made_of"] = {"data": {}} | record["made_of"]  # W&B drops what is empty
    record["history"] = [entry for row in run.scan_history() if len(entry := _entry(row)) > 2]
    return record | {"updates": _updates(run, summary.get("spectra"))}


def _is_ours(run: Any) -> bool:
    return isinstance(run.config.get("variant"), Mapping) and {"task", "seed", "trainer"} <= set(run.config)


def _variant(config: Mapping[str, Any]) -> dict[str, Any]:
    """The variant by the settings, for runs that were tracked before their summary held it."""
    name = config["variant"]["name"]
    try:
        cls = VARIANTS.find(name)
    except ValueError:
        return {"name": name, "hyperparameters": {}}
    given, found = {**config, **config["variant"]}, cls.sized_by if config.get("budget") is not None else ""
    known = {key: p.default for key, p in hyperparameters(cls).items() if key != found}
    return {"name": name, "hyperparameters": {key: given.get(key, default) for key, default in known.items()}}


def _unflattened(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """{"a/b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for path, value in entries:
        *parents, last = path.split("/")
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return tree


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the curves, by the names that the trainer gave: step, epoch, loss, …, eval_*."""
    told = {key: value for key, value in row.items() if value is not None and "/" in key}
    step = {"step": told.pop(STEP)} if STEP in told else {}
    kept = {key.removeprefix("train/"): value for key, value in told.items() if key.startswith("train/")}
    judged = {key.replace("/", "_", 1): value for key, value in told.items() if key.startswith("eval/")}
    return {**kept, **judged, **step}


def _updates(run: Any, table: Any) -> list[dict[str, Any]]:
    """The spectra, which lie in a file of the run; none where it was not kept."""
    if not isinstance(table, Mapping) or "path" not in table:
        return []
    if not all(map(is_file_name, str(table["path"]).split("/"))):
        raise ValueError(f"its table {str(table['path'])[:80]!r} is no file of the run")
    with tempfile.TemporaryDirectory() as folder:
        with run.file(table["path"]).download(root=folder, replace=True):
            pass
        content = read_json(Path(folder) / table["path"])
    names = [name.replace("top singular values", "singular values") for name in content["columns"]]
    rows = [dict(zip(names, row, strict=True)) for row in content["data"]]
    return [
        {"shape": [row.pop("O"), row.pop("I")]} | {key.replace(" ", "_"): value for key, value in row.items()}
        for row in rows
    ]
