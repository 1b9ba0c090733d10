"""Write the report of runs, or that of an experiment's finished sweep."""

from pathlib import Path

from rich.console import Console

from lora_zoo.claims import show
from lora_zoo.report import place
from lora_zoo.report.report import PAGE, Report
from lora_zoo.runs import load
from lora_zoo.terminal import say
from lora_zoo.updates.recording import record


def write(*sources: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the runs in these folders and archives; returns the folder that it lies in.

    It holds the tables, figures/ for print, and all of it as one page, report.html. Runs that are tracked in
    Weights & Biases get it there, too, in their sweep's group.

    `out` is `report` in the source where that is one folder, else in the working folder. An earlier report's
    files are replaced. ValueError where there are no runs, or none that may be counted.
    """
    folder = place(*sources) if out is None else Path(out)
    Report(load(*sources)).write(folder)
    return folder


def conclude(sweep: Path) -> None:
    """Write the report of an experiment's sweep, and show its tables and the verdicts of its claims."""
    _record_deltas(sweep)
    report, folder, console = Report(load(sweep)), place(sweep), Console()
    for table in report.tables:
        print(table.markdown())
    if report.tested:
        console.print(show.table(report.tested))
    report.write(folder)
    console.print(f"report: {folder / PAGE}", markup=False, highlight=False, soft_wrap=True)


def _record_deltas(sweep: Path) -> None:
    """Make the tables of ΔW that the experiment asks for, where a run lacks them."""
    for _, run in load(sweep).iterrows():
        wanted = (run["experiment_about"] or {}).get("deltas", [])
        if not wanted or run["state"] != "done" or run["folder"] is None:
            continue
        try:
            record(run["folder"], wanted)
        except (ValueError, OSError) as mistake:
            say(f"warning: no tables of ΔW for {run['name']}: {mistake}")
