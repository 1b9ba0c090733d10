"""A comparison from the request to its page: check, measure a run's cost, plan, run, judge."""

import hashlib
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count
from rich.console import Console
from rich.table import Table

from lora_zoo import run as front_door
from lora_zoo.compare import page, words
from lora_zoo.compare.carrying import Work, file_name, unique
from lora_zoo.compare.contenders import Comparison, check_contenders, specified, with_usual
from lora_zoo.compare.costs import FILE, Cost, Front, costs, steps_of
from lora_zoo.compare.judging import Ruling
from lora_zoo.compare.planning import (
    FACTORS,
    MOST,
    Design,
    State,
    fitting,
    needed,
    rates_of,
    seconds_of,
    state_of,
    wishes,
)
from lora_zoo.runs.record import made

SIZES = ("rank", "parameters")


@dataclass(frozen=True)
class Request:
    """The contenders, the task and the hours; `factors` multiply each contender's own default rate."""

    candidate: str
    references: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    hours: float = 1.0
    sizes: tuple[str, ...] = SIZES
    jobs: int | None = None
    out: Path = Path("runs")
    factors: tuple[float, ...] = FACTORS
    seeds: int = MOST
    """The greatest number of seeds."""
    plan_only: bool = False

    def check(self) -> None:
        """Raise ValueError for a number that cannot be."""
        if not (math.isfinite(self.hours) and self.hours > 0):
            raise ValueError(f"--hours {self.hours:g}: give a number above 0")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}: give 1 or more")
        if self.seeds < 3:
            raise ValueError(f"--seeds {self.seeds}: a verdict takes at least 3")
        if len(self.factors) < 3 or not all(math.isfinite(f) and f > 0 for f in self.factors):
            raise ValueError("--rates must be three or more factors above 0, such as 1,2,0.5")
        if len(set(self.factors)) < len(self.factors):
            raise ValueError("--rates names a factor twice")

    @property
    def command(self) -> str:
        flags = {
            "--against": ",".join(self.references),
            "--hours": f"{self.hours:g}",
            "--at": self.sizes[0] if len(self.sizes) == 1 else None,
            "--rates": ",".join(f"{f:g}" for f in self.factors) if self.factors != FACTORS else None,
            "--seeds": self.seeds if self.seeds != MOST else None,
            "--jobs": self.jobs,
            "--out": self.out if self.out != Path("runs") else None,
        }
        given = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
        return shlex.join(["lora-zoo", "compare", self.candidate, *self.overrides, *given])


def run(request: Request, console: Console | None = None) -> list[Ruling]:
    """Carry the request out and return the verdicts, none for a plan alone.

    ValueError, before any step of a run, where something cannot be run as given or does not fit the hours.
    """
    say = partial((console or Console()).print, markup=False, highlight=False, soft_wrap=True)
    request.check()
    comparisons = check_contenders(request.candidate, request.references, request.overrides, request.sizes)
    work = _planned(request, comparisons, say)
    _show_plan(work)
    if request.plan_only:
        return []
    work.state.save(made(work.folder))
    work.carry_out()
    return _concluded(request, work)


def _planned(request: Request, comparisons: list[Comparison], say: Callable[[Any], None]) -> Work:
    jobs = request.jobs or torch.cuda.device_count() or cpu_count()
    cells = unique(cell for comparison in comparisons for cell in comparison.cells)
    if cells[0].steps is not None:
        wishes(len(request.factors))[0].rungs(cells[0].steps)  # before anything is measured
    front = _front(jobs)
    say(f"measuring the cost of a run: {len(cells)} cells, {jobs} at a time …")
    known = costs(cells, jobs, request.out, front)
    batch = specified([*cells[0].overrides]).settings.batch_size
    steps = steps_of(cells[0], known[cells[0].identity], batch)
    folder = request.out / _name(request, comparisons)
    state = _state(request, folder, list(known.values()), steps, jobs)
    return Work(comparisons, state, request.factors, known, steps, jobs, request.out, folder, front, say)


def _state(request: Request, folder: Path, known: Sequence[Cost], steps: int, jobs: int) -> State:
    """The state from before, with a new design where other hours or seeds are asked for."""
    limit, before = 3600 * request.hours, state_of(folder)
    if before and (before.limit, before.asked) == (limit, request.seeds):
        return before
    design = _design(request, known, steps, jobs)
    if before is None:
        return State(design, limit, request.seeds)
    plans = before.plans + (design != before.design)
    return State(design, limit, request.seeds, before.spent, plans)


def _design(request: Request, known: Sequence[Cost], steps: int, jobs: int) -> Design:
    rates, most = len(request.factors), request.seeds
    design = fitting(3600 * request.hours, known, steps, jobs=jobs, rates=rates, most=most)
    if design is None:
        hours = _up(needed(wishes(rates, most)[-1], known, steps, jobs) / 3600)
        mean = sum(cost.seconds(steps) for cost in known) / len(known)
        raise ValueError(
            f"{request.hours:.2g} hours are too short: the least plan, {len(known)} cells of {mean:.0f} s a "
            f"run, takes {hours:g}; give --hours {hours:g}, fewer references, --at rank, or fewer steps (the "
            f"costs are kept in {request.out / FILE}; without it they are measured again)"
        )
    return design


def _up(hours: float) -> float:
    """Hours with two digits, rounded up."""
    digits = 1 - math.floor(math.log10(hours))
    return math.ceil(hours * 10**digits) / 10**digits


def _front(jobs: int) -> Front:
    joblib = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"] if jobs > 1 else []
    threads = [] if torch.cuda.is_available() else [f"threads={max(1, cpu_count() // jobs)}"]
    own = ["-m", "hydra/hydra_logging=none", *joblib, *threads]

    def sweep(words: Sequence[str]) -> int:
        return front_door.sweep([*own, *with_usual(words)])

    return sweep


def _name(request: Request, comparisons: Sequence[Comparison]) -> str:
    parts = [f"{c.at} {cell.identity}" for c in comparisons for cell in c.cells]
    digest = hashlib.sha256("\n".join([*parts, str(request.factors)]).encode()).hexdigest()[:8]
    return f"compare-{file_name(comparisons[0].candidate.label)}-{digest}"


def _show_plan(work: Work) -> None:
    design, known = work.design, work.costs
    table = Table(title="plan", title_justify="left")
    for name in ("cell", "rank", "parameters", "rates", "s a run", "runs", "hours"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for cell in work.cells:
        rates = ", ".join(f"{rate:g}" for rate in sorted(rates_of(cell.lr, work.factors[: design.rates])))
        hours = f"{seconds_of(design, known[cell.identity], work.steps, work.jobs) / 3600:.2f}"
        rank = "-" if cell.rank is None else str(cell.rank)
        seconds = f"{work.seconds(cell):.3g}"
        table.add_row(cell.label, rank, f"{cell.trainable:,}", rates, seconds, str(design.runs), hours)
    work.say(table)
    total = needed(design, list(known.values()), work.steps, work.jobs) / 3600
    limit = f"at most {total:.2f} of {work.state.limit / 3600:.2g} hours, {work.jobs} runs at a time"
    for line in (f"every cell: {design.words(work.steps)}; {limit}", *words.absences(work.comparisons)):
        work.say(line)


def _concluded(request: Request, work: Work) -> list[Ruling]:
    rulings = work.rulings()
    settings = specified([*work.cells[0].overrides]).settings
    of = f"{settings.task.name} on {settings.model.name}"
    about = f"{of}: which is better, by how much, at what cost, and how sure is that?"
    content = page.content_of(work, rulings, request.command, about)
    answers = [sentence for _, sentences in content["answers"] for sentence in ("", *sentences)]
    path = page.write(content, work.folder)
    for sentence in [*answers, "", *content["notes"], *content["plan"], f"page: {path}"]:
        work.say(sentence)
    return rulings
