"""The notes below a table: the runs that were left out and why, and what made those that count."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora_zoo.analysis.columns import format_value, join_names
from lora_zoo.analysis.integrity import Finding, unread
from lora_zoo.config.experiments import grid_values
from lora_zoo.runs.archives import portable
from lora_zoo.runs.summary import overrides_of


def doubts(frame: pd.DataFrame, found: Sequence[Finding]) -> list[str]:
    """The frame's findings, one line each; those that keep runs out come first."""
    found = sorted(found, key=lambda finding: not finding.rows)
    lines = [f"left out ({finding.kind}): {finding.said}" for finding in unread(frame)]
    words = ["left out" if finding.rows else "note" for finding in found]
    return [*lines, *(f"{word} ({f.kind}): {f.said}" for word, f in zip(words, found, strict=True))]


def origin(counted: pd.DataFrame) -> list[str]:
    """The scale and the seeds, then commit, threads and device of the runs of a table."""
    scale = {
        "task": counted["task"],
        "model": counted["model"],
        "parameters": pd.Series(f"{least / 1e6:.3g}M" for least in counted.groupby("model")["total"].min()),
        "steps": counted["steps"],
        "batch": counted["batch_size"],
        "seeds": counted["seed"].sort_values(),
    }
    made = {
        "commit": counted["commit"].dropna().map(lambda commit: str(commit)[:10]),
        "threads": _of(counted, "config.threads", "environment.threads"),
        "device": _of(counted, "environment.device"),
    }
    dirty = " (with uncommitted changes)" if (counted["dirty"] == True).any() else ""  # noqa: E712
    return [_facts(scale), f"{_facts(made)}{dirty}"]


def command(counted: pd.DataFrame, about: Mapping[str, Any]) -> str:
    """The sweep that makes the runs again; where they are no whole product of values, the first run."""
    told = [portable(line) for line in counted.get("command", ()) if isinstance(line, str)]
    asked = _asked(counted)
    runs = [overrides_of(line) | asked for line in told]
    keys = dict.fromkeys(key for run in runs for key in run)
    values = {key: list(dict.fromkeys(run[key] for run in runs if key in run)) for key in keys}
    if about.get("name"):
        grid = {key: set(map(str, given)) for key, given in grid_values(about.get("grid", {})).items()}
        own = {key: given for key, given in values.items() if set(map(_in_yaml, given)) != grid.get(key)}
        return _sweep({"+experiment": [about["name"]]} | {k: v for k, v in own.items() if k != "experiment"})
    different = {tuple(sorted(run.items())) for run in runs}
    if len({*told}) == 1 or math.prod(map(len, values.values())) != len(different):
        return next(iter(told), "")
    return _sweep(values)


_PLANS = {"seeds": ("most", "against"), "rates": ("key", "count", "budget")}
"""The keys of the plans of seed=auto and lr=auto by which a sweep is made again."""


def _asked(counted: pd.DataFrame) -> dict[str, str]:
    """The overrides that ask for the plans of the runs, where all have one and the same."""
    found: dict[str, str] = {}
    for group, names in _PLANS.items():
        columns = [f"config.{group}.{name}" for name in names]
        if counted.empty or not {*columns} <= {*counted} or counted[columns].isna().any(axis=None):
            continue
        if len(plans := counted[columns].drop_duplicates()) == 1:
            told = {c.removeprefix("config."): format_value(plans[c].iloc[0]) for c in columns}
            found |= {told.pop("rates.key", "seed"): "auto"} | told
    return found | _searched(counted)


def _searched(counted: pd.DataFrame) -> dict[str, str]:
    """The overrides that ask for the search of the runs, where all have one and the same."""
    columns = [f"config.search.{name}" for name in ("space", "n_trials", "sampler", "seed")]
    if counted.empty or not {*columns} <= {*counted} or counted[columns[0]].isna().any():
        return {}
    if len(counted[columns].astype(str).drop_duplicates()) > 1:
        return {}
    space, *rest = counted[columns].iloc[0]
    given = {f"hydra.sweeper.{c.rpartition('.')[2]}": held for c, held in zip(columns[1:], rest, strict=True)}
    words = ["hydra/sweeper=optuna", *(f"{key}={format_value(held)}" for key, held in given.items())]
    words += shlex.split(space)
    return overrides_of(shlex.join(words))


def _in_yaml(value: str) -> str:
    """A job's override as a grid writes it: another key of the job is $rank there."""
    return re.sub(r"\$\\?\{([\w.]+)\\?\}", r"$\1", value)


def _sweep(values: Mapping[str, Sequence[str]]) -> str:
    words = [f"{key}={','.join(map(str, given))}" for key, given in values.items()]
    return shlex.join(["python", "-m", "lora_zoo.run", "-m", *words])


def _of(frame: pd.DataFrame, *names: str) -> pd.Series:
    """The last of these columns that the frame has."""
    present = [name for name in names if name in frame]
    return frame[present[-1]].dropna() if present else pd.Series(dtype=object)


def _facts(values: Mapping[str, pd.Series]) -> str:
    """`steps 200; seeds 0, 1, 2`; what no run tells is left out."""
    words = {name: list(dict.fromkeys(map(format_value, column))) for name, column in values.items()}
    return "; ".join(f"{name} {join_names(told, 12)}" for name, told in words.items() if told)
