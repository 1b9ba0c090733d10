"""A comparison from the request to its page: check, measure a run's cost, plan, run, judge."""

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from joblib import cpu_count
from rich.console import Console
from rich.table import Table

from lora_zoo import run as front_door
from lora_zoo.compare import page
from lora_zoo.compare.carrying import Work, file_name, state_of, unique
from lora_zoo.compare.contenders import Comparison, check_contenders, specified, with_usual
from lora_zoo.compare.costs import Cost, Front, costs, steps_of
from lora_zoo.compare.judging import Ruling
from lora_zoo.compare.planning import FACTORS, MOST, Design, fitting, least, needed, rates_of
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
        if not self.factors or not all(math.isfinite(f) and f > 0 for f in self.factors):
            raise ValueError("--rates must be factors above 0, such as 1,2,0.5")
        if len(set(self.factors)) < len(self.factors):
            raise ValueError("--rates names a factor twice")

    @property
    def command(self) -> str:
        words = [
            "lora-zoo",
            "compare",
            self.candidate,
            *self.overrides,
            "--against",
            ",".join(self.references),
        ]
        words += ["--hours", f"{self.hours:g}"]
        return shlex.join(words)


def run(request: Request, console: Console | None = None) -> list[Ruling]:
    """Carry the request out and return the verdicts, none for a plan alone.

    ValueError, before any step of a run, where something cannot be run as given or does not fit the hours.
    """
    console = console or Console()
    request.check()
    comparisons = check_contenders(request.candidate, request.references, request.overrides, request.sizes)
    work = _planned(request, comparisons, console)
    _show_plan(work, console)
    if request.plan_only:
        return []
    made(work.folder)
    work.save()
    work.carry_out()
    return _concluded(request, work, console)


def _planned(request: Request, comparisons: list[Comparison], console: Console) -> Work:
    jobs = request.jobs or torch.cuda.device_count() or cpu_count()
    cells = unique(cell for comparison in comparisons for cell in comparison.cells)
    front = _front(jobs)
    console.print(f"measuring the cost of a run: {len(cells)} cells, {jobs} at a time …", highlight=False)
    known = costs(cells, jobs, request.out, front)
    batch = specified([*cells[0].overrides]).settings.batch_size
    seconds = {c.identity: known[c.identity].seconds(steps_of(c, known[c.identity], batch)) for c in cells}
    folder = request.out / _name(request, comparisons)
    before = state_of(folder)
    limit = 3600 * request.hours
    same = before is not None and before.limit == limit
    design = before.design if before and same else _design(request, seconds, known, jobs)
    return Work(
        comparisons, design, request.factors, seconds, limit, jobs, request.out, folder, front,
        say=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        spent=before.spent if before else 0.0, plans=before.plans + (not same) if before else 1,
    )  # fmt: skip


def _design(request: Request, seconds: dict[str, float], known: dict[str, Cost], jobs: int) -> Design:
    runs, loads = list(seconds.values()), [cost.load for cost in known.values()]
    limit = 3600 * request.hours
    design = fitting(limit, runs, loads, jobs=jobs, rates=len(request.factors), most=request.seeds)
    if design is None:
        hours = least(runs, loads, jobs) / 3600
        raise ValueError(
            f"--hours {request.hours:g} is too short: the least plan, {len(runs)} cells of "
            f"{sum(runs) / len(runs):.0f} s a run, takes {_up(hours):g}; give --hours {_up(hours):g}, fewer "
            "references, --at rank, or fewer steps"
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


def _show_plan(work: Work, console: Console) -> None:
    design = work.design
    table = Table(title="plan", title_justify="left")
    for name in ("cell", "rank", "parameters", "rates", "s a run", "runs", "hours"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for cell in work.cells:
        seconds = work.seconds[cell.identity]
        rates = ", ".join(f"{rate:g}" for rate in rates_of(cell.lr, work.factors[: design.rates]))
        hours = f"{design.runs * seconds / work.jobs / 3600:.2f}"
        rank = "-" if cell.rank is None else str(cell.rank)
        table.add_row(
            cell.label, rank, f"{cell.trainable:,}", rates, f"{seconds:.3g}", str(design.runs), hours
        )
    console.print(table)
    total = needed(design, list(work.seconds.values()), [], work.jobs) / 3600
    limit = f"at most {total:.2f} of {work.limit / 3600:.2g} hours, {work.jobs} runs at a time"
    text = f"every cell: {design}; {limit}"
    console.print(text, highlight=False, soft_wrap=True)
    for comparison in work.comparisons:
        for said in comparison.absent:
            line = f"not compared at equal {comparison.at}: {said}"
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _concluded(request: Request, work: Work, console: Console) -> list[Ruling]:
    rulings = work.rulings()
    task, model = (_chosen(request.overrides, key) for key in ("task", "model"))
    about = f"{task} on {model}: which is better, by how much, at what cost, and how sure is that?"
    made_page = page.page_of(work, rulings, request.command, about)
    console.print()
    for answer in made_page.answers:
        for sentence in answer.sentences:
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        console.print()
    for sentence in [*made_page.notes, *made_page.plan]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    path = page.write(made_page, work.folder)
    console.print(f"page: {path}", markup=False, highlight=False, soft_wrap=True)
    return rulings


def _chosen(overrides: Sequence[str], key: str) -> str:
    found = [word.partition("=")[2] for word in overrides if word.lstrip("+").partition("=")[0] == key]
    return found[-1] if found else {"task": "pocket-sql", "model": "pocket"}[key]
