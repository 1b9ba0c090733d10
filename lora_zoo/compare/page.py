"""The page of a comparison: what is known, first and in sentences; then tables, curves, plan and commands."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo import runs
from lora_zoo.analysis.statistics import interval
from lora_zoo.compare import words
from lora_zoo.compare.carrying import Work
from lora_zoo.compare.judging import CellRuns, Ruling
from lora_zoo.report import figures
from lora_zoo.report.figures import Chart, Nothing
from lora_zoo.report.page import policy, style, template
from lora_zoo.runs.record import write_atomically

FILE = "compare.html"


def content_of(work: Work, rulings: Sequence[Ruling], command: str, about: str) -> dict[str, Any]:
    """All that the page shows of what there is of the work's runs; tables are rows by column."""
    sides = {cell.identity: work.measured(cell) for cell in work.cells}
    others = dict.fromkeys(ruling.reference.cell.label for ruling in rulings)
    compared = [c for c in work.comparisons if c.references]
    return {
        "title": f"{work.cells[0].label} against {', '.join(others)}",
        "about": about,
        "answers": [(str(ruling.finding), answer(ruling, work)) for ruling in rulings],
        "notes": [words.sureness(rulings, work.state.plans), *words.absences(work.comparisons)],
        "parts": [_part(f"At equal {c.at}", [sides[cell.identity] for cell in c.cells]) for c in compared],
        "plan": list(_plan(work)),
        "made": [_made(work, side) for side in sides.values()],
        "command": command,
        "commands": [str(text) for side in sides.values() for text in side.runs.get("command", ())],
    }


def html(content: dict[str, Any]) -> str:
    return template("compare.html").render(page=content, policy=policy(), style=style())


def write(content: dict[str, Any], folder: Path) -> Path:
    write_atomically(folder / FILE, html(content))
    return folder / FILE


def answer(ruling: Ruling, work: Work) -> list[str]:
    """Sentences: one verdict, its cost, and what it would take to know."""
    pair = (work.seconds(ruling.candidate.cell) + work.seconds(ruling.reference.cell)) / work.jobs
    sentences = (words.verdict(ruling), words.likelihood(ruling), words.cost(ruling))
    return [sentence for sentence in (*sentences, words.to_know(ruling, pair)) if sentence]


def _part(heading: str, sides: Sequence[CellRuns]) -> dict[str, Any]:
    return {"heading": heading, "table": [_row(side) for side in sides], "charts": list(_charts(sides))}


def _row(side: CellRuns) -> dict[str, str]:
    cell, frame = side.cell, side.runs
    score = interval(side.scores)
    bounds = "" if pd.isna(score.low) else f" [{score.low:.4f}, {score.high:.4f}]"
    return {
        "contender": cell.label,
        "rank": "-" if cell.rank is None else str(cell.rank),
        "trainable": f"{cell.trainable:,}",
        "learning rate": f"{side.found.rate:g}",
        "seeds": str(len(frame)),
        "test, mean [95 %]": "-" if pd.isna(score.estimate) else f"{score.estimate:.4f}{bounds}",
        "validation": _value(frame, "validation", "{:.4f}", "mean"),
        "s a step": _value(frame, "step_seconds", "{:.3g}"),
        "kept, bytes": _value(frame, "memory.saved", "{:,.0f}"),
        "forgotten, nats a token": _value(frame, "forgetting", "{:+.3f}", "mean"),
    }


def _value(frame: pd.DataFrame, column: str, form: str, how: str = "median") -> str:
    value = frame[column].agg(how) if column in frame and len(frame) else float("nan")
    return "-" if pd.isna(value) else form.format(value)


def _charts(sides: Sequence[CellRuns]) -> Iterator[Chart]:
    """Curves of the chosen rates, and validation against the rate; what cannot be drawn is left out."""
    chosen = _labelled([(side.cell.label, side.runs.reset_index(drop=True)) for side in sides])
    tried = _labelled([(side.cell.label, side.every) for side in sides])
    makers = (
        lambda: figures.curves(chosen, runs.histories(chosen), ["variant"]),
        lambda: figures.against(tried, "lr", ["variant", "steps"], value="validation"),
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
    within = f"{words.duration(work.state.limit)}, {work.jobs} at a time"
    yield f"Planned for {within}: the same for every cell, {work.design.words(work.steps)}."
    made = f"Spent on runs: {words.duration(work.state.spent)}."
    yield f"{made} Stopped before all was decided: {work.stopped}." if work.stopped else made


def _made(work: Work, side: CellRuns) -> dict[str, str]:
    return {
        "cell": side.cell.label,
        "parameters": f"{side.cell.trainable:,}",
        "learning rate, by halving": str(side.found),
        "runs": str(len(side.every)),
        "diverged": str(int((side.every["state"] == "diverged").sum())),
        "seconds per run, predicted and median": f"{work.seconds(side.cell):.3g}, "
        + _value(side.runs, "total_seconds", "{:.3g}"),
    }
