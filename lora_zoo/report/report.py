"""A report of runs: its parts, each made once and when it is asked for, and the words of its page."""

import itertools
import re
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.checks import Finding
from lora_zoo.analysis.columns import join_names, plain
from lora_zoo.analysis.integrity import findings, sound, unread
from lora_zoo.analysis.protocol import cells
from lora_zoo.claims import LedgerEntry, Status, ledger
from lora_zoo.report import figures
from lora_zoo.report.answer import answers
from lora_zoo.report.figure_list import FigureList, Views, figure_list
from lora_zoo.report.layout import Layout
from lora_zoo.report.ranking import ranking
from lora_zoo.report.render import Table
from lora_zoo.report.tables import further_tables, layout_of, table_of
from lora_zoo.runs.keys import axes, column

DECIDED = (Status.SUPPORTED, Status.NOT_SUPPORTED, Status.INCONCLUSIVE, Status.UNTUNED, Status.BUSY)
SETTING = re.compile(r"^(config\.|variant\.hyperparameters\.)")
FACTS = {
    **{"Variants": "variant", "Tasks": "task", "Model": "model", "Seeds": "seed", "Metric": "metric"},
    **{"Machine": "environment.device", "torch": "environment.packages.torch"},
}
COLUMNS = ("seed", "state", "validation", "test", "trainable", "train_seconds", "command")


class Opening(NamedTuple):
    """The answer in sentences, the figure that shows it, None for a single cell, and the table."""

    heading: str
    sentences: list[str]
    ranking: Views | None
    table: Table


class Report:
    """The report of a frame from `lora_zoo.runs.load`. ValueError where no run may be counted.

    `merges` are the models composed of such runs, from `lora_zoo.runs.merges`.
    """

    def __init__(self, frame: pd.DataFrame, merges: pd.DataFrame | None = None) -> None:
        self.frame, self.axes, self.merges = frame, axes(frame), merges
        parts = (part for _, part in frame.groupby("experiment", sort=False))
        self.parts = [(_about(part), part) for part in parts]
        """The runs of each experiment, after what its YAML says of it: {} for runs of none."""

    @cached_property
    def layouts(self) -> list[Layout]:
        """The cells of each part."""
        return [
            layout_of(part, examined) for (_, part), examined in zip(self.parts, self._examined, strict=True)
        ]

    @cached_property
    def openings(self) -> list[Opening]:
        """The first things that a reader sees of each part."""
        titles = [str(layout.about.get("title") or "") for layout in self.layouts]
        return [
            Opening(title if len(titles) > 1 else "", answers(layout), ranking(layout), table_of(layout))
            for title, layout in zip(titles, self.layouts, strict=True)
        ]

    @cached_property
    def further_tables(self) -> list[Table]:
        return further_tables([part for _, part in self.parts], self._examined)

    @property
    def tables(self) -> list[Table]:
        return [*(opening.table for opening in self.openings), *self.further_tables]

    @property
    def rankings(self) -> list[Views]:
        """The first figure of each part."""
        return [opening.ranking for opening in self.openings if opening.ranking]

    @cached_property
    def ledger(self) -> list[LedgerEntry]:
        """Every claim, those of the runs' own experiments first."""
        names = set(self.frame["experiment"])
        return sorted(ledger(self.frame), key=lambda entry: entry.needs not in names)

    @property
    def decided(self) -> list[LedgerEntry]:
        return [entry for entry in self.ledger if entry.verdict.status in DECIDED]

    @property
    def about_runs(self) -> list[LedgerEntry]:
        """Claims that these runs decide."""
        return [entry for entry in self.decided if entry.needs]

    @property
    def computed(self) -> list[LedgerEntry]:
        """Claims that need no runs."""
        return [entry for entry in self.decided if not entry.needs]

    @property
    def undecided(self) -> list[LedgerEntry]:
        """Claims that these runs say nothing about."""
        return [entry for entry in self.ledger if entry.verdict.status not in DECIDED]

    @property
    def tested(self) -> list[LedgerEntry]:
        """The claims that the experiments of these runs test."""
        names = set(self.frame["experiment"].dropna()) - {""}
        return sorted((entry for entry in self.ledger if entry.needs in names), key=lambda entry: entry.id)

    @cached_property
    def figures(self) -> FigureList:
        """The figures of each experiment; where there are several, under its name."""
        found = FigureList()
        for (about, part), examined in zip(self.parts, self._examined, strict=True):
            made = _figures(about, sound(part, examined))
            name = about.get("title") or about.get("name")
            head = f"{name}: " if len(self.parts) > 1 and name else ""
            found.views += [Views(head + views.heading, views.choice, views.charts) for views in made.views]
            found.absent += made.absent
        if self.merges is not None and len(self.merges):
            found.add("Composed models", "of", {"all": partial(figures.merges, self.merges)})
        return found

    @cached_property
    def _examined(self) -> list[list[Finding]]:
        """The findings of each part."""
        return [findings(part) for _, part in self.parts]

    @property
    def findings(self) -> list[Finding]:
        return [*unread(self.frame), *itertools.chain(*self._examined)]

    @property
    def alert(self) -> str:
        """A line on what is wrong with the runs; "" where nothing is."""
        n, kinds = len(self.findings), join_names([*dict.fromkeys(finding.kind for finding in self.findings)])
        left_out = len({row for found in self._examined for finding in found for row in finding.rows})
        counted = f"{left_out} of {len(self.frame)} runs left out" if left_out else "every run is counted"
        return f"{n} finding{'s' if n > 1 else ''} ({kinds}): {counted}" if n else ""

    @property
    def title(self) -> str:
        names = [about.get("title") or about.get("name") for about, _ in self.parts]
        if known := [name for name in names if name]:
            return join_names(known, 3)
        variants, tasks = (join_names(sorted(self.frame[c].dropna().unique())) for c in ("variant", "task"))
        return f"{variants} on {tasks}"

    @property
    def question(self) -> str:
        return str(self.parts[0][0].get("question", "")) if len(self.parts) == 1 else ""

    @property
    def commands(self) -> list[str]:
        return [f"python -m lora_zoo.run -m +experiment={about['name']}" for about, _ in self.parts if about]

    @property
    def facts(self) -> dict[str, str]:
        """A few words each: how many runs, of what, from which code."""
        states = self.frame["state"].value_counts()
        known = {
            "Runs": ", ".join(f"{n} {state}" for state, n in states.items()),
            **{name: _values(self.frame, column) for name, column in FACTS.items()},
            "Ended": _ended(self.frame),
            "Commit": _commits(self.frame),
        }
        return {name: text for name, text in known.items() if text}

    @property
    def shared_settings(self) -> dict[str, str]:
        """The settings that have one value in all runs, by their key on the command line."""
        columns = [name for name in self.frame if SETTING.match(str(name))]
        same = [name for name in columns if self.frame[name].astype(str).nunique() == 1]
        values = {SETTING.sub("", name): self.frame[name].iloc[0] for name in same}
        return {key: _text(value) for key, value in sorted(values.items()) if plain(value) is not None}

    @property
    def run_list(self) -> pd.DataFrame:
        """Every run as text: identity, settings, outcome and, last, its command."""
        columns = dict.fromkeys(["run", *self.axes, *COLUMNS])
        runs = self.frame[[name for name in columns if name in self.frame]].map(_text)
        return runs.rename(columns=lambda name: name.rpartition(".")[2].replace("_", " "))

    @cached_property
    def first_of_run(self) -> list[bool]:
        """True for each row of the frame whose run stands in none before."""
        return (~self.frame["run"].duplicated()).tolist()


def _about(runs: pd.DataFrame) -> dict[str, Any]:
    return dict((runs["experiment_about"].iloc[0] if "experiment_about" in runs else None) or {})


def _figures(about: Mapping[str, Any], runs: pd.DataFrame) -> FigureList:
    """Laid out by the experiment's rows and columns, else by what the runs differ in."""
    value = column(runs, about.get("value", "test"))
    laid_out = [column(runs, axis) for axis in (*about.get("rows", ()), *about.get("columns", ()))]
    by, tune = laid_out or axes(runs), about.get("tune", ())
    if tune and by:  # its table counts those that validation chose
        kept = {run for cell in cells(runs, by, value, tune).cells for run in cell.runs}
        runs = runs[runs["run"].isin(kept)]
    return figure_list(runs, by, value=value)


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


def _text(value: Any) -> str:
    if plain(value) is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
