"""The words of a page about a frame of runs: its title, facts, settings and list of runs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora_zoo.analysis.columns import join_names
from lora_zoo.analysis.integrity import sound
from lora_zoo.analysis.protocol import cells
from lora_zoo.report.figure_list import FigureList, Views, figure_list
from lora_zoo.report.figures.groups import missing
from lora_zoo.runs.keys import axes, column

Part = tuple[dict[str, Any], pd.DataFrame]
SETTING = re.compile(r"^(config\.|variant\.hyperparameters\.)")
FACTS = {
    **{"Variants": "variant", "Tasks": "task", "Model": "model", "Seeds": "seed", "Metric": "metric"},
    **{"Machine": "environment.device", "torch": "environment.packages.torch"},
}


def parts(frame: pd.DataFrame) -> list[Part]:
    """The runs of each experiment, after what its YAML says of it: {} for runs of none."""
    return [(_about(part), part) for _, part in frame.groupby("experiment", sort=False)]


def _about(runs: pd.DataFrame) -> dict[str, Any]:
    return dict((runs["experiment_about"].iloc[0] if "experiment_about" in runs else None) or {})


def title(frame: pd.DataFrame) -> str:
    names = [about.get("title") or about.get("name") for about, _ in parts(frame)]
    if named := [name for name in names if name]:
        return join_names(named, 3)
    variants, tasks = (join_names(sorted(frame[c].dropna().unique())) for c in ("variant", "task"))
    return f"{variants} on {tasks}"


def figures(frame: pd.DataFrame) -> FigureList:
    """The figures of each experiment; where there are several, under its name."""
    found, every = FigureList(), parts(frame)
    for about, part in every:
        made = _figures(about, sound(part))
        name = about.get("title") or about.get("name")
        head = f"{name}: " if len(every) > 1 and name else ""
        found.views += [Views(head + views.heading, views.choice, views.charts) for views in made.views]
        found.absent += made.absent
    return found


def _figures(about: Mapping[str, Any], runs: pd.DataFrame) -> FigureList:
    """Laid out by the experiment's rows and columns, else by what the runs differ in."""
    value = column(runs, about.get("value", "test"))
    laid_out = [column(runs, axis) for axis in (*about.get("rows", ()), *about.get("columns", ()))]
    by, tune = laid_out or axes(runs), about.get("tune", ())
    if tune and by:  # its table counts those that validation chose
        kept = {run for cell in cells(runs, by, value, tune).cells for run in cell.runs}
        runs = runs[runs["run"].isin(kept)]
    return figure_list(runs, by, value=value)


def facts(runs: pd.DataFrame) -> dict[str, str]:
    """A few words each: how many runs, of what, from which code."""
    states = runs["state"].value_counts()
    known = {
        "Runs": ", ".join(f"{n} {state}" for state, n in states.items()),
        **{name: _values(runs, column) for name, column in FACTS.items()},
        "Ended": _ended(runs),
        "Commit": _commits(runs),
    }
    return {name: text for name, text in known.items() if text}


def _values(runs: pd.DataFrame, column: str) -> str:
    values = sorted(runs[column].dropna().unique()) if column in runs else []
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _ended(runs: pd.DataFrame) -> str:
    times = pd.to_datetime(runs["ended"], utc=True, errors="coerce").dropna() if "ended" in runs else []
    return f"{max(times):%Y-%m-%d %H:%M} UTC" if len(times) else ""


def _commits(runs: pd.DataFrame) -> str:
    commits = [str(commit)[:10] for commit in runs["commit"].dropna().unique()]
    dirty = " with uncommitted changes" if runs["dirty"].fillna(False).astype(bool).any() else ""
    return ", ".join(commits) + (dirty if commits else "")


def shared_settings(runs: pd.DataFrame) -> dict[str, str]:
    """The settings that have one value in all runs, by their key on the command line."""
    columns = [
        column for column in runs if SETTING.match(str(column)) and runs[column].astype(str).nunique() == 1
    ]
    same = {SETTING.sub("", column): runs[column].iloc[0] for column in columns}
    return {key: _text(value) for key, value in sorted(same.items()) if not missing(value)}


def run_list(runs: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Every run as text: identity, settings, outcome and, last, its command."""
    columns = ["run", *axes, "seed", "state", "validation", "test", "trainable", "train_seconds", "command"]
    shown = runs[[name for name in dict.fromkeys(columns) if name in runs]]
    return shown.map(_text).rename(columns=lambda name: name.rpartition(".")[2].replace("_", " "))


def _text(value: Any) -> str:
    if missing(value):
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
