"""Reports of runs, from their results alone: `write("runs")`, or `python -m lora_zoo.report runs`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_zoo.report.typeset import Table

FORMATS = ("md", "tex", "csv", "html")


def write(*sources: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the runs in these folders and archives; returns the folder that it lies in.

    `out` is `report` in the source where that is one folder, else in the working folder. An earlier report's
    files are replaced. ValueError where there are no runs, or none that may be counted.
    """
    from lora_zoo.report.tables import tables
    from lora_zoo.results import load

    return write_tables(tables(load(*sources)), place(*sources) if out is None else Path(out), FORMATS)


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


__all__ = ["write"]
