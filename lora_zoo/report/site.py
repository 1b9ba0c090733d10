"""A leaderboard over many experiments: tasks × variants; each number leads to its runs and its command.

It is made of files alone: index.html and a page for each experiment beside it.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from lora_zoo.analysis.columns import format_value
from lora_zoo.analysis.comparison import Cell, Cells
from lora_zoo.report.figures.axes import value_axis
from lora_zoo.report.layout import APART, Layout, families
from lora_zoo.report.page import html, policy, scripts, style, template
from lora_zoo.report.provenance import command
from lora_zoo.report.report import Report
from lora_zoo.report.titles import title_of, written
from lora_zoo.runs import load, merges
from lora_zoo.runs.loading import ARCHIVE, PACKED
from lora_zoo.runs.record import RESULT
from lora_zoo.terminal import say

INDEX = "index.html"


class Number(NamedTuple):
    """A cell of an experiment's table as the leaderboard shows it."""

    variant: str
    column: tuple[str, str, str]
    """Task, model and metric."""
    setting: str
    text: str
    n: int
    leads: bool
    """True where it is significantly better than all others of its experiment."""
    parameters: float
    memory: float
    """Peak memory in MB."""
    chosen_by: float
    """The mean on validation; the greater, the better."""
    experiment: str
    page: str
    run: str
    command: str

    @property
    def limits(self) -> dict[str, str]:
        """The values that a reader filters by."""
        known = {"parameters": self.parameters, "memory": self.memory}
        return {"model": self.column[1]} | {k: "" if math.isnan(v) else f"{v:.0f}" for k, v in known.items()}


def write_site(sources: Sequence[str | Path], out: Path) -> Path:
    """Write the leaderboard of the experiments in these folders and archives, and their pages; returns it.

    A folder without runs of its own stands for every archive below it. What holds no run that may be counted
    is left out, with a warning. ValueError where nothing is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers: list[Number] = []
    for name, source in _by_name(sources).items():
        try:
            report = Report(load(source), merges(source))
            numbers += numbers_of(report, f"{name}.html")
        except ValueError as mistake:
            say(f"left out: {mistake}")
            continue
        (out / f"{name}.html").write_text(html(report, home=INDEX), encoding="utf-8")
        say(f"{name}.html: {len(report.frame)} runs")
    if not numbers:
        raise ValueError(f"nothing to show: {', '.join(map(str, sources))} hold no runs that may be counted")
    (out / INDEX).write_text(leaderboard(numbers), encoding="utf-8")
    return out / INDEX


def _by_name(sources: Sequence[str | Path]) -> dict[str, Path]:
    """The experiments by the name of their pages."""
    found: dict[str, Path] = {}
    for source in itertools.chain(*map(_experiments, map(Path, sources))):
        place = source.parent if source.name == ARCHIVE else source
        stem = re.sub(r"[^\w.-]+", "-", place.resolve().name.removesuffix(PACKED))
        names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        found[next(name for name in names if name not in found and f"{name}.html" != INDEX)] = source
    return found


def _experiments(source: Path) -> list[Path]:
    archives = [] if next(source.rglob(RESULT), None) else sorted(source.rglob(ARCHIVE))
    return archives or [source]


def numbers_of(report: Report, page: str) -> Iterator[Number]:
    """The cells of the report's tables; those without a run left out."""
    for layout in report.layouts:
        for _, part in families(layout.found):
            tied = part.tied() if part.better and any(cell.n for cell in part.cells) else []
            leads = tied[0] if len(tied) == 1 and len(part.cells) > 1 else None
            for cell in part.cells:
                if cell.n:
                    yield _number(layout, part, cell, cell is leads and layout.learned(cell), page)


def _number(layout: Layout, part: Cells, cell: Cell, leads: bool, page: str) -> Number:
    runs = layout.runs[layout.runs["run"].isin(cell.runs)]
    axes = [(axis, format_value(cell.key[axis])) for axis in layout.by if axis not in (*APART, "variant")]
    axes += [(axis, format_value(value)) for axis, value in cell.chosen.items()]
    task, model, variant = (str(runs[name].iloc[0]) for name in ("task", "model", "variant"))
    return Number(
        variant=title_of(variant),
        column=(task, model, value_axis(runs, part.value).label),
        setting=", ".join(written(axis, value, alone=False) for axis, value in axes if value != "-"),
        text=layout.cell(tuple(format_value(cell.key[axis]) for axis in layout.by)).text,
        n=cell.n,
        leads=leads,
        parameters=cell.trainable,
        memory=float(runs["peak_memory"].median()) / 1e6 if "peak_memory" in runs else math.nan,
        chosen_by=float(cell.validation.mean()) * (-1 if part.better == "lower" else 1),
        experiment=str(layout.about.get("title") or Path(page).stem),
        page=page,
        run=cell.runs[0],
        command=command(runs, layout.about),
    )


def leaderboard(numbers: Sequence[Number]) -> str:
    """The page: a grid of tasks × variants, and every number in a list below."""
    order = sorted(numbers, key=lambda number: (math.isnan(number.chosen_by), -number.chosen_by))
    tasks = Counter(column for _, column in {(number.variant, number.column) for number in numbers})
    known = Counter(variant for variant, _ in {(number.variant, number.column) for number in numbers})
    columns = sorted(tasks, key=lambda column: (-tasks[column], column))
    variants = sorted(known, key=lambda variant: (-known[variant], variant.casefold()))
    grid = {
        name: [[i for i in order if (i.variant, i.column) == (name, column)] for column in columns]
        for name in variants
    }
    script = scripts("sort.js", "site.js")
    return template("site.html").render(
        columns=columns,
        grid=grid,
        numbers=sorted(numbers, key=lambda number: (number.column, number.variant.casefold())),
        place={number: f"number-{i}" for i, number in enumerate(numbers)},
        models=sorted({number.column[1] for number in numbers}),
        pages=len({number.page for number in numbers}),
        policy=policy(script),
        script=Markup(script),
        style=style(),
    )
