"""A report of runs: what they say, made once and when it is asked for, and written in any form."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from lora_zoo.claims import LedgerEntry, ledger
from lora_zoo.report import FORMATS, wandb_side
from lora_zoo.report.contents import page_of
from lora_zoo.report.keeping import keep
from lora_zoo.report.page import Page, html
from lora_zoo.report.tables import tables
from lora_zoo.report.typeset import Table
from lora_zoo.runs import archive

PAGE = "report.html"
VIEWS = 6  # of a figure, as files


class Report:
    """The report of a frame from `lora_zoo.runs.loading`. ValueError where no run may be counted."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    @cached_property
    def tables(self) -> list[Table]:
        return tables(self.frame)

    @cached_property
    def ledger(self) -> list[LedgerEntry]:
        return ledger(self.frame)

    @cached_property
    def page(self) -> Page:
        return page_of(self.frame, [table.html() for table in self.tables], self.ledger)

    @property
    def tested(self) -> list[LedgerEntry]:
        """The claims that the experiments of these runs test."""
        names = set(self.frame["experiment"].dropna()) - {""}
        return [entry for entry in self.ledger if entry.needs in names]

    def write_tables(self, out: Path, formats: Sequence[str] = FORMATS) -> None:
        """Each table as `out`/NAME.md, .tex, .csv and .html, as far as `formats` has them."""
        out.mkdir(parents=True, exist_ok=True)
        for table in self.tables:
            texts = {"md": table.markdown, "tex": table.latex, "csv": table.csv, "html": table.html}
            for ending in formats:
                (out / f"{_of_file(table.name)}.{ending}").write_text(texts[ending](), encoding="utf-8")

    def write_page(self, out: Path) -> Path:
        """`out`/report.html."""
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(html(self.page), encoding="utf-8")
        return out / PAGE

    def write_figures(self, out: Path) -> dict[str, Path]:
        return write_figures(self.page, out)

    def write(self, out: Path) -> None:
        """All of it; of runs that are mirrored in W&B there, too, in their sweep's group."""
        self.write_tables(out)
        self.write_page(out)
        self.mirror(out, self.write_figures(out))

    def mirror(self, out: Path, pngs: dict[str, Path]) -> str:
        """Send it to W&B, its files in `out`/wandb. Returns where it is, "" where it is not."""
        return wandb_side.mirror(self.frame, self.tables, self.page, pngs, out)

    def pack(self, path: Path) -> Path:
        return archive(self.frame, path)

    def keep(self, folder: Path) -> Path:
        """Table, claims and runs of one experiment, for a repository: see `keeping`."""
        return keep(self.frame, self.tables[0], self.tested, folder)


def write_figures(page: Page, out: Path) -> dict[str, Path]:
    """Each figure, of long lists the first, in `out`/figures as SVG, PDF and PNG; the PNGs by name."""
    pngs = {}
    for views in page.figures:
        for name, chart in list(views.charts.items())[:VIEWS]:
            stem = _of_file(f"{views.heading} {name}".lower().replace("δ", "d"))[:100].strip("-")
            *_, pngs[stem] = chart.save(out / "figures" / stem)
    return pngs


def _of_file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


__all__ = ["PAGE", "Report", "write_figures"]
