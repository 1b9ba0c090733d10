"""Reports of runs, from their results alone: `write("runs")`, or `python -m lora_zoo.report runs`."""

from pathlib import Path

FORMATS = ("md", "tex", "csv", "html")
"""Of tables."""


def write(*sources: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the runs in these folders and archives; returns the folder that it lies in.

    It holds the tables, figures/ for print, and all of it as one page, report.html. Runs that are mirrored in
    Weights & Biases get it there, too, in their sweep's group.

    `out` is `report` in the source where that is one folder, else in the working folder. An earlier report's
    files are replaced. ValueError where there are no runs, or none that may be counted.
    """
    from lora_zoo.report.report import Report
    from lora_zoo.runs import load

    folder = place(*sources) if out is None else Path(out)
    Report(load(*sources)).write(folder)
    return folder


def conclude(sweep: Path) -> None:
    """Write the report of an experiment's sweep, and show its tables and the verdicts of its claims."""
    from rich.console import Console

    from lora_zoo.claims import show
    from lora_zoo.report.report import PAGE, Report
    from lora_zoo.runs import load

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
    from lora_zoo.runs import load
    from lora_zoo.terminal import say

    for _, run in load(sweep).iterrows():
        wanted = (run["experiment_about"] or {}).get("deltas", [])
        if not wanted or run["state"] != "done" or run["folder"] is None:
            continue
        from lora_zoo.updates.recording import record

        try:
            record(run["folder"], wanted)
        except (ValueError, OSError) as mistake:
            say(f"warning: no tables of ΔW for {run['name']}: {mistake}")


def place(*sources: str | Path) -> Path:
    """Where a report of these sources goes if nobody says otherwise."""
    only = Path(sources[0]) if len(sources) == 1 else Path()
    return (only if only.is_dir() else Path()) / "report"


__all__ = ["conclude", "place", "write"]
