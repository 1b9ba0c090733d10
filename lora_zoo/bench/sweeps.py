"""Sweeps through the command line: what a job costs with each launcher that is installed."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lora_zoo.bench.options import Options
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.timing import Run, Stopwatch, Timed, summary, texts
from lora_zoo.config.groups import folder

ABOUT = """\
Wall time of `python -m lora_zoo.run -m` on the embedded model (LoRA, r = 8, seeds 0 to n - 1), the start of
the process included, with each launcher of Hydra that is installed (`hydra/launcher=…`)."""
TIMES = (
    Timed("sweep, s", "seconds", "sweep", digits=".1f"),
    Timed("s a job", "per_job", "job", digits=".2f"),
    Timed("launcher / basic", "over_basic", "sweep", "basic"),
)
LAUNCHERS = ("basic", "joblib", "packed")
ROUNDS = 3
SMALL = (
    "rank=8",
    "tracking=none",
    "threads=1",
    "eval_splits=[validation]",
    "task.sizes.validation=50",
    "task.sizes.test=50",
)


class SweepFailed(RuntimeError):
    """A sweep that was to be timed did not run."""


def measure(options: Options) -> Measurement:
    """A row for each launcher and number of jobs. SweepFailed where a sweep fails."""
    jobs, steps = ((1, 2), 5) if options.quick else ((1, 4, 8), 20)
    rows = [row for n in jobs for row in measure_jobs(n, options, steps=steps)]
    gpu = torch.cuda.is_available()
    note = f"{steps} steps a job; {os.cpu_count()} cores, one thread a job; GPU: {gpu}."
    keys, columns, plotted = ("launcher", "jobs"), texts(TIMES), {"per_job": "a job"}
    return Measurement("sweep", "Sweeps", ABOUT, keys, columns, rows, "seconds a job", plotted, note)


def measure_jobs(jobs: int, options: Options, *, steps: int) -> list[Values]:
    device = ["trainer.use_cpu=true"] if options.device.type == "cpu" else []
    words = ("+variant=lora", f"seed={','.join(map(str, range(jobs)))}", f"steps={steps}", *SMALL, *device)
    watch = Stopwatch(min(options.rounds, ROUNDS), warmup=0, least=0.0)
    with tempfile.TemporaryDirectory() as out:
        times = watch.interleave({name: _sweep(name, words, out) for name in installed()})
    shared = {"jobs": jobs, "steps": steps, "cores": os.cpu_count()}
    return [
        {"launcher": name}
        | shared
        | summary(TIMES, {"sweep": seconds, "job": [s / jobs for s in seconds], "basic": times["basic"]})
        for name, seconds in times.items()
    ]


def installed() -> tuple[str, ...]:
    """The launchers that Hydra finds, of those that a sweep on one machine can use."""
    with initialize_config_dir(version_base="1.3", config_dir=str(folder())):
        found = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    return tuple(name for name in LAUNCHERS if name in found)


def _sweep(launcher: str, words: Sequence[str], out: str) -> Callable[[], Run]:
    """Prepare one sweep, in a new folder within `out`."""
    chosen = [] if launcher == "basic" else [f"hydra/launcher={launcher}"]
    command = [sys.executable, "-m", "lora_zoo.run", "-m", *words, *chosen]
    return lambda: partial(_run, [*command, f"hydra.sweep.dir={tempfile.mkdtemp(dir=out)}"])


def _run(command: Sequence[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        raise SweepFailed(f"{' '.join(command[1:])} ended with {ended.returncode}: {' '.join(last)}")
