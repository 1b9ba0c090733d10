"""Histories, ranks, updates of matrices and scores of examples of a frame of runs, each as its own frame."""

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_zoo.core.bounded_json import parse_json
from lora_zoo.injection.roles import role_of
from lora_zoo.runs.loading import RENAMED, tables_of

_CURVES = ("epoch", "seconds", "loss", "learning_rate", "grad_norm")
_OF_MATRIX = (
    *("run", "name", "role", "layer", "shape", "norm", "relative_norm", "stable_rank", "effective_rank"),
    *("numerical_rank", "singular_values"),
)


def histories(frame: pd.DataFrame) -> pd.DataFrame:
    """The curves, a row a step: run, step, epoch, the task's loss, learning_rate, grad_norm, eval_*."""
    rows = [{"run": run, **entry} for run, history in _each(frame, "history") for entry in history]
    table = pd.DataFrame([row for row in rows if any(_of_curve(key) for key in row)])
    if table.empty:
        return pd.DataFrame(columns=["run", "step", *_CURVES])
    told = sorted(key for key in table.columns if _of_curve(key) and key != "loss")
    return table.groupby(["run", "step"], sort=False, as_index=False)[
        [*(key for key in _CURVES if key in table.columns), *told]
    ].first()


def _of_curve(key: str) -> bool:
    """True for entries of the curves, false for those of the trainer's summary at its end."""
    return key == "loss" or key.startswith("eval_")


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """The ranks of matrices where they change, a row a change: run, step, name, role, layer, rank.

    Of methods and programs that change them; each holds until the matrix's next row, or the end of the run.
    """
    told = [(run, record.get("ranks") or {}) for run, record in _each(frame, "record")]
    rows = [
        {"run": run, "step": step, "name": name, **_place(name), "rank": rank}
        for run, changes in told
        for name, own in sorted(changes.items())
        for step, rank in own
    ]
    return pd.DataFrame(rows, columns=["run", "step", "name", "role", "layer", "rank"])


def routing(frame: pd.DataFrame) -> pd.DataFrame:
    """Routing of mixtures, a row an expert: run, split, name, role, layer, expert, load, entropy.

    The load is the expert's mean weight; the entropy (nats) is the matrix's, the mean of a token's.
    """
    told = [(run, record.get("routing") or {}) for run, record in _each(frame, "record")]
    rows = [
        {"run": run, "split": split, "name": name, **_place(name), "expert": expert, "load": load}
        | {"entropy": own["entropy"]}
        for run, splits in told
        for split, matrices in splits.items()
        for name, own in sorted(matrices.items())
        for expert, load in enumerate(own["load"])
    ]
    columns = ["run", "split", "name", "role", "layer", "expert", "load", "entropy"]
    return pd.DataFrame(rows, columns=columns)


def groups(frame: pd.DataFrame) -> pd.DataFrame:
    """The outcomes of each group of `task.groups`: run, stage, learned, group, split, metric, value.

    A row for each metric of a group after each stage of a program, or after the one training; `learned` is
    the group that the stage trained on, "" where it names none. Stage 0 is the model before training.
    """
    rows = [
        {
            "run": run,
            "stage": stage,
            "learned": learned,
            "group": group,
            "split": split,
            "metric": metric,
            "value": value,
        }
        for run, record in _each(frame, "record")
        for stage, (learned, splits) in enumerate(_by_stage(record))
        for split, found in splits.items()
        for group, values in found.items()
        for metric, value in values.items()
    ]
    return pd.DataFrame(rows, columns=["run", "stage", "learned", "group", "split", "metric", "value"])


def _by_stage(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The group learned and the outcomes of each split's groups, from before training to its end."""
    stages = record.get("stages") or [{}]
    found = [(stage.get("group", ""), stage.get("groups", {})) for stage in stages[:-1]]
    last = (stages[-1].get("group", ""), record.get("groups", {}))
    return [("", record.get("zero_shot_groups", {})), *found, last]


def updates(frame: pd.DataFrame) -> pd.DataFrame:
    """The ΔW: a row a run and matrix, with role, layer (None outside of them), numerical rank and spectrum.

    `numerical_rank` counts the kept singular values above 1e-6 of the first.
    """
    rows = [{"run": run, **_of_matrix(row)} for run, found in _each(frame, "updates") for row in found]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(_OF_MATRIX))
    return table[[*_OF_MATRIX, *(c for c in table.columns if c not in _OF_MATRIX)]]


def deltas(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """A table of `lora_zoo.updates` (`amplification`, …) of all runs that recorded it, with a column `run`.

    ValueError where none did, with the tables that there are.
    """
    found = [(run, tables_of(record)) for run, record in _each(frame, "record")]
    table = RENAMED.get(table, table)
    rows = [{"run": run, **row} for run, tables in found for row in tables.get(table, [])]
    if not rows:
        there = ", ".join(sorted({name for _, tables in found for name in tables})) or "none"
        raise ValueError(
            f"no run recorded the table {table!r} (recorded: {there}); "
            "python -m lora_zoo.spectra RUN… --record makes them from the runs' adapters"
        )
    return pd.DataFrame(rows)


def examples(frame: pd.DataFrame, split: str = "test", of: str = "score") -> pd.DataFrame:
    """Scores, items x runs (their identities), of the runs that kept them; `of="nll"` gives nats instead.

    ValueError where none kept any, and for another `of`.
    """
    if of not in KEPT:
        raise ValueError(f"examples keep their {' and '.join(KEPT)}; got of={of!r}")
    series = []
    for run, folder, record in zip(frame["run"], frame["folder"], frame["record"], strict=True):
        values = kept_of(record, folder)[of].get(split)
        if values:
            series.append(pd.Series(values, name=run, dtype=float))
    if not series:
        raise ValueError(f"none of the {len(frame)} runs kept the {of} of examples of the split {split!r}")
    table = pd.concat(series, axis=1).sort_index()
    return table.rename_axis(index="item", columns="run")


KEPT = {"score": "scores", "nll": "nll"}
"""What is kept of an example -> the key of an archive's record under which it stands."""
Kept = dict[str, dict[int, float]]
"""Split: {item: number}."""


def kept_of(record: Mapping[str, Any], folder: Any) -> dict[str, Kept]:
    """For each of KEPT what is known, from an archive's record or the run's folder."""
    if "scores" in record:
        packed = {of: record.get(key, {}) for of, key in KEPT.items()}
        return {of: {split: _unpacked(one) for split, one in splits.items()} for of, splits in packed.items()}
    files = sorted(Path(folder).glob("examples-*.jsonl")) if isinstance(folder, str) else []
    read = {file.stem.removeprefix("examples-"): [*_outcomes(file)] for file in files}
    return {
        of: {
            split: {item: outcome[of] for item, outcome in found if of in outcome}
            for split, found in read.items()
        }
        for of in KEPT
    }


def packed_scores(scores: Mapping[int, float]) -> dict[str, Any]:
    """Scores that are 0 or 1 as bits, others as they are; items where they do not count from 0."""
    items, values = _items(scores), list(scores.values())
    if not set(values) <= {0.0, 1.0}:
        return items | {"values": values}
    bits = np.packbits(np.array(values, dtype=bool)).tobytes()
    return items | {"n": len(values), "bits": base64.b64encode(bits).decode()}


def packed_nll(nll: Mapping[int, float]) -> dict[str, Any]:
    """Nats in 16 bits each (float16: to 0.05 %, or 3e-8), as they are where one is too great for them."""
    with np.errstate(over="ignore"):
        halves = np.array(list(nll.values()), dtype=float).astype("<f2")
    if not np.isfinite(halves).all():
        return _items(nll) | {"values": list(nll.values())}
    return _items(nll) | {"halves": base64.b64encode(halves.tobytes()).decode()}


def _items(values: Mapping[int, float]) -> dict[str, list[int]]:
    return {} if list(values) == list(range(len(values))) else {"items": list(values)}


def _unpacked(packed: Mapping[str, Any]) -> dict[int, float]:
    if "bits" in packed:
        raw = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
        values = np.unpackbits(raw, count=packed["n"]).astype(float).tolist()
    elif "halves" in packed:
        values = np.frombuffer(base64.b64decode(packed["halves"]), dtype="<f2").astype(float).tolist()
    else:
        values = packed["values"]
    return dict(zip(packed.get("items", range(len(values))), values, strict=True))


def _outcomes(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Each item, and the numbers that are kept of it."""
    for line in file.read_text(encoding="utf-8").splitlines():
        outcome = parse_json(line)
        yield outcome["item"], {of: float(outcome[of]) for of in KEPT if of in outcome}


def _each(frame: pd.DataFrame, what: str) -> Iterator[tuple[str, Any]]:
    return zip(frame["run"], frame[what], strict=True)


def _place(name: str) -> dict[str, Any]:
    """The role and the layer of the matrix with this name."""
    layer = re.search(r"\.(\d+)\.", name)
    return {"role": role_of(name), "layer": int(layer[1]) if layer else None}


def _of_matrix(row: Mapping[str, Any]) -> dict[str, Any]:
    sigma = np.array(row["singular_values"], dtype=float)
    return {
        **row,
        "shape": tuple(row["shape"]),
        **_place(row["name"]),
        "numerical_rank": int((sigma > 1e-6 * sigma[0]).sum()) if sigma.size else 0,
        "singular_values": sigma,
    }
