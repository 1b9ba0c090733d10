"""What a page says of a frame of runs: the sound ones in figures, all of them in its list."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora_zoo.analysis.columns import listed
from lora_zoo.analysis.integrity import findings, sound
from lora_zoo.analysis.protocol import cells
from lora_zoo.claims import LedgerEntry, Status, ledger, show
from lora_zoo.report.gallery import Gallery, Views, gallery
from lora_zoo.report.overlaps import overlaps
from lora_zoo.report.page import Page, Verdict, facts, lines, shared_settings
from lora_zoo.runs.curves import histories, updates
from lora_zoo.runs.frame import axes, column

DECIDED = (Status.SUPPORTED, Status.NOT_SUPPORTED, Status.INCONCLUSIVE)


def page_of(
    frame: pd.DataFrame, tables: Sequence[str] = (), entries: Sequence[LedgerEntry] | None = None
) -> Page:
    """The page of a frame from `lora_zoo.runs.load`, with its tables in HTML and its ledger of claims."""
    parts = [(_about(part), part) for _, part in frame.groupby("experiment", sort=False)]
    galleries = [(about, _gallery(about, sound(part))) for about, part in parts]
    several = len(parts) > 1
    names = set(frame["experiment"])
    entries = ledger(frame) if entries is None else entries
    entries = sorted(entries, key=lambda entry: entry.needs not in names)  # its own first
    differing = axes(frame)
    columns, every_run = lines(frame, differing)
    return Page(
        title=_title(frame, parts),
        question=parts[0][0].get("question", "") if len(parts) == 1 else "",
        facts=facts(frame),
        tables=tables,
        figures=[_headed(about, views, several) for about, made in galleries for views in made.views],
        absent=[reason for _, made in galleries for reason in made.absent],
        claims=[_verdict(entry) for entry in entries if entry.verdict.status in DECIDED],
        undecided=[_verdict(entry) for entry in entries if entry.verdict.status not in DECIDED],
        tally=show.totals(entries),
        findings=[finding for _, part in parts for finding in findings(part)],
        axes=differing,
        settings=shared_settings(frame),
        commands=[f"python -m lora_zoo.run -m +experiment={about['name']}" for about, _ in parts if about],
        columns=columns,
        runs=every_run,
    )


def _about(runs: pd.DataFrame) -> dict[str, Any]:
    """What the experiment's YAML says of it; {} for runs of none."""
    told = runs["experiment_about"].iloc[0] if "experiment_about" in runs else None
    return dict(told or {})


def _title(frame: pd.DataFrame, parts: Sequence[tuple[Mapping[str, Any], pd.DataFrame]]) -> str:
    names = [about["title"] if about.get("title") else about.get("name", "") for about, _ in parts]
    named = [name for name in names if name]
    if named:
        return listed(named, 3)
    variants, tasks = (listed(sorted(frame[c].dropna().unique())) for c in ("variant", "task"))
    return f"{variants} on {tasks}"


def _gallery(about: Mapping[str, Any], runs: pd.DataFrame) -> Gallery:
    """Laid out by the experiment's rows and columns, else by what the runs differ in."""
    value = column(runs, about.get("value", "test"))
    laid_out = [column(runs, axis) for axis in (*about.get("rows", ()), *about.get("columns", ()))]
    by = laid_out or axes(runs)
    judged = _chosen(runs, by, value, about.get("tune", ()))
    return gallery(judged, histories(judged), updates(judged), by, value=value).with_subspaces(
        *overlaps(judged)
    )


def _chosen(runs: pd.DataFrame, by: Sequence[str], value: str, tune: Sequence[str]) -> pd.DataFrame:
    """Of a tuned experiment the runs that its table counts: those chosen on validation."""
    if not tune or not by:
        return runs
    kept = {run for cell in cells(runs, by, value, tune).cells for run in cell.runs}
    return runs[runs["run"].isin(kept)]


def _headed(about: Mapping[str, Any], views: Views, several: bool) -> Views:
    name = about.get("title") or about.get("name")
    return Views(f"{name}: {views.heading}", views.choice, views.charts) if several and name else views


def _verdict(entry: LedgerEntry) -> Verdict:
    return Verdict(
        entry.id,
        entry.statement,
        f"{entry.paper}, {entry.where}".strip(", "),
        str(entry.verdict.status),
        show.effect(entry),
        entry.verdict.reason,
        entry.command,
    )


__all__ = ["page_of"]
