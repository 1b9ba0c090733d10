"""A report of runs, written in any form."""

import re
from collections.abc import Sequence
from pathlib import Path

from lora_zoo.report import FORMATS, to_wandb
from lora_zoo.report.page import html
from lora_zoo.report.parts import ReportParts
from lora_zoo.report.save_experiment import save_experiment
from lora_zoo.runs import archive

PAGE = "report.html"
VIEWS = 6  # of a figure, as files


class Report(ReportParts):
    """The report of a frame from `lora_zoo.runs.load`. ValueError where no run may be counted."""

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
        """All of it; of runs that are tracked in W&B there, too, in their sweep's group."""
        self.write_tables(out)
        self.write_page(out)
        self.send(out, self.write_figures(out))

    def send(self, out: Path, pngs: dict[str, Path]) -> str:
        """Send it to W&B, its files in `out`/wandb. Returns where it is, "" where it is not."""
        return to_wandb.send(self, pngs, out)

    def archive(self, path: Path) -> Path:
        return archive(self.frame, path)

    def save_experiment(self, folder: Path) -> Path:
        """Table, claims and runs of one experiment, for a repository."""
        return save_experiment(self.frame, self.tables[0], self.tested, folder)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
