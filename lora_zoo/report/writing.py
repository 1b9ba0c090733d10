"""Write the report of runs, as a whole or by its forms, and that of an experiment's finished sweep."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lora_zoo.claims import show
from lora_zoo.report import FORMATS, default_folder, to_wandb
from lora_zoo.report.page import html
from lora_zoo.report.report import Report
from lora_zoo.runs import load
from lora_zoo.terminal import say
from lora_zoo.updates.recording import record

PAGE = "report.html"
VIEWS = 6  # of a figure, as files


def write(*sources: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the runs in these folders and archives; returns the folder that it lies in.

    It holds the tables, figures/ for print, and all of it as one page, report.html. Runs that are tracked in
    Weights & Biases get it there, too, in their sweep's group.

    `out` is `report` in the source where that is one folder, else in the working folder. An earlier report's
    files are replaced. ValueError where there are no runs, or none that may be counted.
    """
    folder = default_folder(*sources) if out is None else Path(out)
    _write(Report(load(*sources)), folder)
    return folder


def conclude(sweep: Path) -> None:
    """Write the report of an experiment's sweep, and show its tables and the verdicts of its claims."""
    _record_deltas(sweep)
    report, folder, console = Report(load(sweep)), default_folder(sweep), Console()
    for table in report.tables:
        print(table.markdown())
    if report.tested:
        console.print(show.table(report.tested))
    _write(report, folder)
    console.print(f"report: {folder / PAGE}", markup=False, highlight=False, soft_wrap=True)


def _write(report: Report, out: Path) -> None:
    write_tables(report, out)
    write_page(report, out)
    to_wandb.send(report, write_figures(report, out), out)


def write_tables(report: Report, out: Path, formats: Sequence[str] = FORMATS) -> None:
    """Each table as `out`/NAME.md, .tex, .csv and .html, as far as `formats` has them."""
    out.mkdir(parents=True, exist_ok=True)
    for table in report.tables:
        texts = {"md": table.markdown, "tex": table.latex, "csv": table.csv, "html": table.html}
        for ending in formats:
            (out / f"{_file_name(table.name)}.{ending}").write_text(texts[ending](), encoding="utf-8")


def write_page(report: Report, out: Path) -> None:
    """`out`/report.html."""
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(html(report), encoding="utf-8")


def write_figures(report: Report, out: Path) -> dict[str, Path]:
    """Each figure, of long lists the first, in `out`/figures as SVG, PDF and PNG; the PNGs by name."""
    pngs = {}
    for views in (*report.rankings, *report.figures.views):
        for name, chart in list(views.charts.items())[:VIEWS]:
            stem = _file_name(f"{views.heading} {name}".lower().replace("δ", "d"))[:100].strip("-")
            *_, pngs[stem] = chart.save(out / "figures" / stem)
    return pngs


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


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
