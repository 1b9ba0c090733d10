"""A report of runs: each part made once and when it is asked for, and written in any form."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.analysis.integrity import findings
from lora_zoo.claims import LedgerEntry, Status, ledger
from lora_zoo.report import FORMATS, content, to_wandb
from lora_zoo.report.figure_list import FigureList
from lora_zoo.report.page import html
from lora_zoo.report.save_experiment import save_experiment
from lora_zoo.report.tables import Table, tables
from lora_zoo.runs import archive
from lora_zoo.runs.keys import axes

PAGE = "report.html"
VIEWS = 6  # of a figure, as files
DECIDED = (Status.SUPPORTED, Status.NOT_SUPPORTED, Status.INCONCLUSIVE)


class Report:
    """The report of a frame from `lora_zoo.runs.load`. ValueError where no run may be counted."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    @cached_property
    def tables(self) -> list[Table]:
        return tables(self.frame)

    @cached_property
    def ledger(self) -> list[LedgerEntry]:
        """Every claim, those of the runs' own experiments first."""
        names = set(self.frame["experiment"])
        return sorted(ledger(self.frame), key=lambda entry: entry.needs not in names)

    @cached_property
    def figures(self) -> FigureList:
        return content.figures(self.frame)

    @cached_property
    def findings(self) -> list[Any]:
        return [finding for _, part in content.parts(self.frame) for finding in findings(part)]

    @property
    def axes(self) -> list[str]:
        return axes(self.frame)

    @property
    def decided(self) -> list[LedgerEntry]:
        return [entry for entry in self.ledger if entry.verdict.status in DECIDED]

    @property
    def undecided(self) -> list[LedgerEntry]:
        """Claims that these runs say nothing about."""
        return [entry for entry in self.ledger if entry.verdict.status not in DECIDED]

    @property
    def tested(self) -> list[LedgerEntry]:
        """The claims that the experiments of these runs test."""
        names = set(self.frame["experiment"].dropna()) - {""}
        return sorted((entry for entry in self.ledger if entry.needs in names), key=lambda entry: entry.id)

    @property
    def question(self) -> str:
        every = content.parts(self.frame)
        return str(every[0][0].get("question", "")) if len(every) == 1 else ""

    @property
    def commands(self) -> list[str]:
        names = [about["name"] for about, _ in content.parts(self.frame) if about]
        return [f"python -m lora_zoo.run -m +experiment={name}" for name in names]

    def write_tables(self, out: Path, formats: Sequence[str] = FORMATS) -> None:
        """Each table as `out`/NAME.md, .tex, .csv and .html, as far as `formats` has them."""
        out.mkdir(parents=True, exist_ok=True)
        for table in self.tables:
            texts = {"md": table.markdown, "tex": table.latex, "csv": table.csv, "html": table.html}
            for ending in formats:
                (out / f"{_file_name(table.name)}.{ending}").write_text(texts[ending](), encoding="utf-8")

    def write_page(self, out: Path) -> Path:
        """`out`/report.html."""
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(html(self), encoding="utf-8")
        return out / PAGE

    def write_figures(self, out: Path) -> dict[str, Path]:
        """Each figure, of long lists the first, in `out`/figures as SVG, PDF and PNG; the PNGs by name."""
        pngs = {}
        for views in self.figures.views:
            for name, chart in list(views.charts.items())[:VIEWS]:
                stem = _file_name(f"{views.heading} {name}".lower().replace("δ", "d"))[:100].strip("-")
                *_, pngs[stem] = chart.save(out / "figures" / stem)
        return pngs

    def write(self, out: Path) -> None:
        """All of it; of runs that are mirrored in W&B there, too, in their sweep's group."""
        self.write_tables(out)
        self.write_page(out)
        self.mirror(out, self.write_figures(out))

    def mirror(self, out: Path, pngs: dict[str, Path]) -> str:
        """Send it to W&B, its files in `out`/wandb. Returns where it is, "" where it is not."""
        return to_wandb.mirror(self, pngs, out)

    def archive(self, path: Path) -> Path:
        return archive(self.frame, path)

    def save_experiment(self, folder: Path) -> Path:
        """Table, claims and runs of one experiment, for a repository."""
        return save_experiment(self.frame, self.tables[0], self.tested, folder)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
