"""Sweeps through the command line: what a job costs with each launcher that is installed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lora_zoo.benchmark.options import Options
from lora_zoo.benchmark.report import Curve, Report, Row
from lora_zoo.benchmark.step import as_y, shown, spread
from lora_zoo.benchmark.timing import Run, Spread, Stopwatch, ratio
from lora_zoo.config.groups import folder

ABOUT = """\
Wall time of `python -m lora_zoo.run -m` on the embedded model (LoRA, r = 8, seeds 0 to n - 1), the start of
the process included, with each launcher of Hydra that is installed (`hydra/launcher=…`)."""
COLUMNS = {
    "launcher": "launcher",
    "jobs": "jobs",
    "seconds": "sweep, s",
    "per_job": "s a job",
    "over_basic": "launcher / basic",
}
LAUNCHERS = ("basic", "joblib", "packed")
ROUNDS = 3


class Failed(RuntimeError):
    """A sweep that was to be timed did not run."""


SMALL = (
    "rank=8",
    "tracking=none",
    "threads=1",
    "eval_splits=[validation]",
    "task.sizes.validation=50",
    "task.sizes.test=50",
)


def measure(options: Options) -> Report:
    jobs, steps = ((1, 2), 5) if options.quick else ((1, 4, 8), 20)
    return report([row for n in jobs for row in measure_jobs(n, options, steps=steps)], steps)


def measure_jobs(jobs: int, options: Options, *, steps: int) -> list[Row]:
    """A row for each launcher. Failed where a sweep fails."""
    watch = Stopwatch(min(options.rounds, ROUNDS), 0, least=0.0, clock=time.perf_counter)
    asked = (f"steps={steps}", *SMALL, *(["trainer.use_cpu=true"] if options.device.type == "cpu" else []))
    times = watch.alternate({name: _sweep(name, jobs, asked) for name in installed()})
    rows: list[Row] = []
    for name, taken in times.items():
        row: Row = {"launcher": name, "jobs": jobs, "steps": steps, "cores": os.cpu_count()}
        row |= spread("seconds", Spread.of(taken)) | spread("per_job", Spread.of([t / jobs for t in taken]))
        rows.append(row | spread("over_basic", ratio(taken, times["basic"])))
    return rows


def installed() -> tuple[str, ...]:
    """The launchers that Hydra finds, of those that a sweep on one machine can use."""
    with initialize_config_dir(version_base="1.3", config_dir=str(folder())):
        found = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    return tuple(name for name in LAUNCHERS if name in found)


class _sweep:
    """Prepares one sweep, in a folder of its own that goes when the next is prepared."""

    def __init__(self, launcher: str, jobs: int, asked: Sequence[str]) -> None:
        seeds = ",".join(map(str, range(jobs)))
        chosen = [] if launcher == "basic" else [f"hydra/launcher={launcher}"]
        self.words = ["+variant=lora", f"seed={seeds}", *asked, *chosen]
        self.out = tempfile.TemporaryDirectory()

    def __call__(self) -> Run:
        self.out.cleanup()
        self.out = tempfile.TemporaryDirectory()
        out = Path(self.out.name)
        command = [sys.executable, "-m", "lora_zoo.run", "-m", *self.words, f"hydra.sweep.dir={out}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        return lambda: _run(command, environment)


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        raise Failed(f"{' '.join(command[1:])} ended with {ended.returncode}: {' '.join(last)}")


def report(rows: list[Row], steps: int) -> Report:
    cells = [
        {"launcher": row["launcher"], "jobs": row["jobs"], "seconds": f"{row['seconds']:.1f}"}
        | {"per_job": f"{row['per_job']:.2f}", "over_basic": shown(row, "over_basic")}
        for row in rows
    ]
    lines = [
        {
            "panel": f"{steps} steps a job, {os.cpu_count()} cores",
            "launcher": row["launcher"],
            "jobs": row["jobs"],
        }
        | as_y(row, "per_job")
        for row in rows
    ]
    curve = Curve(
        title="What a job of a sweep costs",
        x="jobs",
        group="launcher",
        x_label="jobs in the sweep",
        y_label="seconds a job (wall time)",
        rows=lines,
    )
    cores = (
        f"{steps} steps a job; {os.cpu_count()} cores, one thread a job; GPU: {torch.cuda.is_available()}."
    )
    return Report("sweep", "Sweeps", ABOUT, COLUMNS, rows, cells, notes=[cores], curve=curve)
