"""The page of a comparison: what is known, first and in sentences; then tables, curves, plan and commands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lora_zoo import runs
from lora_zoo.analysis.statistics import interval
from lora_zoo.compare import words
from lora_zoo.compare.carrying import Work
from lora_zoo.compare.contenders import Comparison
from lora_zoo.compare.judging import CellRuns, Ruling
from lora_zoo.report import figures
from lora_zoo.report.figures import Chart, Nothing
from lora_zoo.report.page import policy, style, template
from lora_zoo.runs.record import write_atomically

FILE = "compare.html"


@dataclass(frozen=True)
class Answer:
    """The sentences of one verdict; `kind` is its finding."""

    kind: str
    sentences: list[str]


@dataclass(frozen=True)
class TextTable:
    """Columns and rows of text."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Part:
    """One size: its table and its charts."""

    heading: str
    table: TextTable
    charts: list[Chart]


@dataclass(frozen=True)
class ComparePage:
    """All that the page shows."""

    title: str
    about: str
    answers: list[Answer]
    notes: list[str]
    parts: list[Part]
    plan: list[str]
    made: TextTable
    command: str
    commands: list[str]

    def html(self) -> str:
        return template("compare.html").render(page=self, policy=policy(), style=style())


def page_of(work: Work, rulings: Sequence[Ruling], command: str, about: str) -> ComparePage:
    """The page of what there is of the work's runs."""
    sides = {cell.identity: work.measured(cell) for cell in work.cells}
    candidate = work.comparisons[0].candidate.label
    others = list(dict.fromkeys(c.label for comparison in work.comparisons for c in comparison.references))
    return ComparePage(
        title=f"{candidate} against {', '.join(others)}",
        about=about,
        answers=[answer(ruling, work) for ruling in rulings],
        notes=[
            *([words.sureness(rulings, work.family)] if rulings else []),
            *words.absences(work.comparisons),
        ],
        parts=[
            _part(c, [sides[cell.identity] for cell in c.cells]) for c in work.comparisons if c.references
        ],
        plan=list(_plan(work)),
        made=_made(work, sides),
        command=command,
        commands=[str(text) for side in sides.values() for text in side.runs.get("command", ())],
    )


def write(page: ComparePage, folder: Path) -> Path:
    write_atomically(folder / FILE, page.html())
    return folder / FILE


def answer(ruling: Ruling, work: Work) -> Answer:
    """One verdict, its cost, and what it would take to know."""
    pair = sum(work.seconds[side.cell.identity] for side in (ruling.candidate, ruling.reference)) / work.jobs
    sentences = [
        words.verdict(ruling),
        words.likelihood(ruling),
        words.cost(ruling),
        words.to_know(ruling, pair),
    ]
    return Answer(str(ruling.finding), [sentence for sentence in sentences if sentence])


def _part(comparison: Comparison, sides: list[CellRuns]) -> Part:
    heading = f"At equal {comparison.at}"
    columns = ["contender", "rank", "trainable", "learning rate", "tries", "seeds"]
    columns += ["test, mean [95 %]", "validation", "s a step", "kept, bytes", "forgotten, nats a token"]
    return Part(heading, TextTable(columns, [_row(side) for side in sides]), list(_charts(sides)))


def _row(side: CellRuns) -> list[str]:
    cell, frame = side.cell, side.runs
    score = interval(side.scores)
    bounds = "" if pd.isna(score.low) else f" [{score.low:.4f}, {score.high:.4f}]"
    return [
        *(cell.label, "-" if cell.rank is None else str(cell.rank), f"{cell.trainable:,}"),
        *("-" if side.chosen is None else f"{side.chosen:g}", str(len(side.tried)), str(len(frame))),
        "-" if pd.isna(score.estimate) else f"{score.estimate:.4f}{bounds}",
        _value(frame, "validation", "{:.4f}", "mean"),
        _value(frame, "step_seconds", "{:.3g}"),
        _value(frame, "memory.saved", "{:,.0f}"),
        _value(frame, "forgetting", "{:+.3f}", "mean"),
    ]


def _value(frame: pd.DataFrame, column: str, form: str, how: str = "median") -> str:
    value = frame[column].agg(how) if column in frame and len(frame) else float("nan")
    return "-" if pd.isna(value) else form.format(value)


def _charts(sides: Sequence[CellRuns]) -> Iterator[Chart]:
    """Curves of the chosen rates, and validation against the rate; what cannot be drawn is left out."""
    chosen = _labelled([(side.cell.label, side.runs.reset_index(drop=True)) for side in sides])
    tried = _labelled([(side.cell.label, side.every) for side in sides])
    makers = (
        lambda: figures.curves(chosen, runs.histories(chosen), ["variant"]),
        lambda: figures.against(tried, "lr", ["variant"], value="validation"),
    )
    for make in makers:
        try:
            yield make()
        except (Nothing, ValueError, KeyError):
            continue


def _labelled(parts: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    frames = [frame.assign(variant=label) for label, frame in parts if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _plan(work: Work) -> Iterator[str]:
    within = f"{words.duration(work.limit)}, {work.jobs} at a time"
    yield f"Planned for {within}: the same for every cell, {work.design}."
    made = f"Spent on runs: {words.duration(work.spent)}."
    yield f"{made} Stopped early: {work.stopped}." if work.stopped else made


def _made(work: Work, sides: dict[str, CellRuns]) -> TextTable:
    columns = ["cell", "parameters", "rates tried", "runs", "diverged", "seconds a run, foretold and median"]
    rows = []
    for cell in work.cells:
        side = sides[cell.identity]
        states = side.every["state"]
        foretold, took = work.seconds[cell.identity], _value(side.every, "total_seconds", "{:.3g}")
        rates = ", ".join(f"{rate:g}" for rate in sorted(side.tried))
        counts = [str(len(side.every)), str(int((states == "diverged").sum()))]
        rows.append([cell.label, f"{cell.trainable:,}", rates, *counts, f"{foretold:.3g}, {took}"])
    return TextTable(columns, rows)
