"""Reports of runs, from their results alone: `write("runs")`, or `python -m lora_zoo.report runs`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from lora_zoo.report.page import Page
    from lora_zoo.report.typeset import Table

FORMATS = ("md", "tex", "csv", "html")
PAGE = "report.html"
VIEWS = 6  # of a figure, as files


def write(*sources: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the runs in these folders and archives; returns the folder that it lies in.

    It holds the tables, figures/ for print, and all of it as one page, report.html. Runs that are mirrored in
    Weights & Biases get it there, too, in their sweep's group.

    `out` is `report` in the source where that is one folder, else in the working folder. An earlier report's
    files are replaced. ValueError where there are no runs, or none that may be counted.
    """
    from lora_zoo.report import wandb_side
    from lora_zoo.report.tables import tables
    from lora_zoo.results import load

    frame = load(*sources)
    made, folder = tables(frame), place(*sources) if out is None else Path(out)
    write_tables(made, folder, FORMATS)
    page = write_page(frame, made, folder)
    wandb_side.mirror(frame, made, page, write_figures(page, folder), folder)
    return folder


def conclude(sweep: Path, name: str) -> Path:
    """Write the report of an experiment's sweep, and show its table and the verdicts of its claims."""
    from rich.console import Console

    from lora_zoo.analysis.claims import ledger, printing
    from lora_zoo.report.tables import tables
    from lora_zoo.results import load

    folder = write(sweep)
    frame = load(sweep)
    for table in tables(frame):
        print(table.markdown())
    console = Console()
    if tested := [entry for entry in ledger(frame) if entry.needs == name]:
        console.print(printing.table(tested))
    console.print(f"report: {folder / PAGE}", markup=False, highlight=False, soft_wrap=True)
    return folder


def place(*sources: str | Path) -> Path:
    """Where a report of these sources goes if nobody says otherwise."""
    only = Path(sources[0]) if len(sources) == 1 else Path()
    return (only if only.is_dir() else Path()) / "report"


def write_tables(tables: "Sequence[Table]", out: Path, formats: Sequence[str]) -> Path:
    """Write each table as `out`/NAME.md, .tex, .csv and .html, as far as `formats` has them."""
    out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        texts = {"md": table.markdown, "tex": table.latex, "csv": table.csv, "html": table.html}
        for ending in formats:
            (out / f"{_of_file(table.name)}.{ending}").write_text(texts[ending](), encoding="utf-8")
    return out


def _of_file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def write_page(frame: "pd.DataFrame", tables: "Sequence[Table]", out: Path) -> "Page":
    """Write `out`/report.html and return what it says."""
    from lora_zoo.report.contents import page_of
    from lora_zoo.report.page import html

    page = page_of(frame, [table.html() for table in tables])
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(html(page), encoding="utf-8")
    return page


def write_figures(page: "Page", out: Path) -> dict[str, Path]:
    """Write each figure, of long lists the first, to `out`/figures as SVG, PDF and PNG; the PNGs by name."""
    pngs = {}
    for views in page.figures:
        for name, chart in list(views.charts.items())[:VIEWS]:
            stem = _of_file(f"{views.heading} {name}".lower().replace("δ", "d"))[:100].strip("-")
            *_, pngs[stem] = chart.save(out / "figures" / stem)
    return pngs


__all__ = ["conclude", "write"]
