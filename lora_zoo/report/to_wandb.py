"""The report in Weights & Biases: tables, figures and verdicts, a run of type "report" in the sweep's group.

Only runs that were tracked themselves get one, in the way they were. What W&B cannot do costs a warning: the
files are the report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.claims import LedgerEntry, show
from lora_zoo.report.report import Report
from lora_zoo.runs.tracking import TrackedTable, open_tracker

JOB = "report"
_TRACKING = "config.tracking."
_CLAIM = ("name", "says", "source", "status", "effect", "said", "command")


def send(report: Report, figures: Mapping[str, Path], folder: Path) -> str:
    """Write the report there; its files lie in `folder`/wandb. Returns where it is, "" where it is not."""
    frame = report.frame
    group = group_of(frame)
    names = sorted(frame["experiment"].dropna().unique())
    with open_tracker(
        tracking_of(frame),
        directory=folder,
        name=f"{JOB}-{group or 'runs'}",
        config={"runs": sorted(frame["run"].dropna()), "axes": report.axes},
        group=group,
        tags=[JOB, *filter(None, names)],
        job_type=JOB,
    ) as opened:
        opened.show(sheets(report), {f"figures/{name}": path for name, path in figures.items()})
        opened.finish({"state": "done", "metrics": {"runs": len(frame)}}, None, [])
        return opened.where


def tracking_of(frame: pd.DataFrame) -> dict[str, Any]:
    """The tracking of the runs that were tracked, as the first of them was; none where none was."""
    columns = [str(column) for column in frame if str(column).startswith(_TRACKING)]
    if f"{_TRACKING}backend" not in columns:
        return {"backend": "none"}
    tracked = frame[frame[f"{_TRACKING}backend"].fillna("none") != "none"]
    if tracked.empty:
        return {"backend": "none"}
    told = tracked[columns].iloc[0].dropna()
    return {
        key.removeprefix(_TRACKING): value for key, value in told.items() if not str(key).endswith(".tags")
    }


def group_of(frame: pd.DataFrame) -> str | None:
    """The sweep whose folder holds all runs: their group. None for runs of several, or without folders."""
    folders = frame["folder"].dropna() if "folder" in frame else []
    sweeps = {Path(folder).resolve().parent.name for folder in folders}
    return sweeps.pop() if len(sweeps) == 1 else None


def sheets(report: Report) -> dict[str, TrackedTable]:
    """Each table's cells as numbers, the ledger and the findings."""
    found = {f"tables/{table.name}": _of_records(table.records) for table in report.tables if table.records}
    found["claims"] = TrackedTable(
        list(_CLAIM), [_of_claim(entry) for entry in (*report.decided, *report.undecided)]
    )
    findings = [[finding.kind, finding.said, ", ".join(finding.runs)] for finding in report.findings]
    found["integrity"] = TrackedTable(["kind", "said", "runs"], findings)
    return found


def _of_claim(entry: LedgerEntry) -> list[str]:
    source, verdict = f"{entry.paper}, {entry.where}".strip(", "), entry.verdict
    status, effect = str(verdict.status), show.effect(entry)
    return [entry.id, entry.statement, source, status, effect, verdict.reason, entry.command]


def _of_records(records: Sequence[Mapping[str, Any]]) -> TrackedTable:
    """Columns of one type each, which is what W&B asks for: words where a column holds any."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    frame = pd.DataFrame(list(records), columns=columns)
    for column in columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            frame[column] = frame[column].map(lambda value: "" if pd.isna(value) else str(value))
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return TrackedTable([*columns], rows)
