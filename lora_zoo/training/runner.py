"""One run, from its specification to a complete record."""

import contextlib
import logging
import os
import shlex
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf
from rich.console import Console

from lora_zoo.config.choices import originals
from lora_zoo.config.schema import Settings
from lora_zoo.config.spec import RunSpec
from lora_zoo.core.errors import in_one_line
from lora_zoo.core.processes import current
from lora_zoo.runs import summary
from lora_zoo.runs.environment import environment, peak_memory
from lora_zoo.runs.finding import finished, link, why_anew
from lora_zoo.runs.record import (
    Busy,
    FolderClaim,
    Record,
    claimed,
    finished_run,
    made,
    now,
    write_atomically,
)
from lora_zoo.runs.redact import redacted
from lora_zoo.tasks.forgetting import AUTO, is_measured
from lora_zoo.terminal import say
from lora_zoo.training.divergence import Diverged
from lora_zoo.training.dry_run import dry_run
from lora_zoo.training.experiment import Experiment
from lora_zoo.training.logs import logging_to
from lora_zoo.training.pruning import Pruned
from lora_zoo.training.resources import FreshResources, ResourcePool, of_this_process
from lora_zoo.training.session import RunContext
from lora_zoo.training.stage_record import STAGES
from lora_zoo.training.together import UnwrittenRecord

_log = logging.getLogger("lora_zoo")


def run(
    spec: RunSpec,
    sweep: str | None = None,
    *,
    progress: bool = True,
    resources: ResourcePool | None = None,
) -> int:
    """Make one run and return its exit code: 0 done, 1 failed or diverged, 2 a mistake in the input.

    `sweep` is the sweep's folder; the run's own is made inside it, or under `settings.out`. What is finished
    there already is not run again. Raises Stopped where a signal stops the run. `resources` are those of
    a job that shares its process with others. Of several processes one leads, and the others follow it.
    """
    current().divided = False
    if not current().leads:
        return _follow(spec)
    with _followers() as begin:
        return _lead(spec, sweep, progress, resources, begin)


def _lead(
    spec: RunSpec,
    sweep: str | None,
    progress: bool,
    resources: ResourcePool | None,
    begin: Callable[[Record], None],
) -> int:
    """The same in the process that leads, which lets the others `begin` once it has a record."""
    console, settings = Console(), spec.settings
    for name, setting in spec.without_effect().items():
        text = f"note: {name} has no effect with {setting}"
        console.print(text, style="yellow", soft_wrap=True)
    if settings.dry_run:
        return dry_run(spec, console)
    resume = sweep is not None if settings.resume is None else settings.resume
    group = Path(sweep).name if sweep else None
    resources = resources or (of_this_process() if group else FreshResources())
    root, name = Path(sweep or settings.out), f"{spec.name}-{spec.identity}"
    try:
        if resume:
            root, name = _found(spec, root, name)
        with claimed(root, name, resume=resume) as claim:
            if claim.finished and not _asks_for_more(settings, claim):
                return _finished_before(claim, console)
            if settings.resume and not claim.before:
                reason = why_anew(Path(settings.out), spec)
                console.print(f"starts again: {reason}", markup=False, highlight=False, soft_wrap=True)
            record = _opened(claim, spec)
            begin(record)
            with logging_to(claim.folder / "run.log", console), resources.process() as signals:
                context = RunContext(console, group, signals, resources, progress)
                return _kept(Experiment(spec, record, context))
    except Busy as busy:
        _complain(console, str(busy))
        return 2
    except OSError as refusal:  # the folder cannot be made, or the record not be written
        _complain(console, f"{refusal.filename or settings.out}: {refusal.strerror or refusal}")
        return 2


def is_over(spec: RunSpec, sweep: Path) -> bool:
    """True if the sweep, or a folder beside it, has this run, finished and with all that is asked of it."""
    done = finished_run(*_found(spec, sweep, f"{spec.name}-{spec.identity}"))
    return done is not None and not _asks_for_more(spec.settings, done)


@contextlib.contextmanager
def _followers() -> Iterator[Callable[[Record], None]]:
    """Inside, the other processes wait for the record of the run; at the end, for no longer."""
    waiting = [True]

    def begin(record: Record | None) -> None:
        if waiting:
            current().from_first(lambda: record and (record.folder, record.content))
            waiting.clear()

    try:
        yield begin
    finally:
        begin(None)


def _follow(spec: RunSpec) -> int:
    """Train with the process that leads, write and print nothing, and return an exit code."""
    told = current().from_first(lambda: None)
    if told is None:
        return 0
    record, console = UnwrittenRecord(*told), Console(quiet=True)
    with logging_to(Path(os.devnull), console), FreshResources().process() as signals:
        context = RunContext(console, None, signals, FreshResources(), progress=False)
        experiment = Experiment(spec, record, context)
        try:
            if record.content["identity"] != spec.identity:
                raise RuntimeError("this process has other settings, data or sources than the one that leads")
            experiment.follow()
        except Diverged:
            return _code("diverged", trial=spec.settings.trial)
        except ValueError:
            return 1 if experiment.underway else 2
        except Exception as failure:
            _log.error("%s", "".join(traceback.format_exception(failure)))
            say(f"process {current().rank}: {_one_line(failure)}")
            return 1
    return 0


def _found(spec: RunSpec, root: Path, name: str) -> tuple[Path, str]:
    """The place of a finished run under `out`, to which a sweep then refers; else the run's own."""
    out = Path(spec.settings.out)
    there = None if finished_run(root, name) else finished(out, spec.identity)
    if there is None:
        return root, name
    if root != out:
        link(there, made(root), spec.settings.experiment)
    return there.parent, there.name


def _opened(claim: FolderClaim, spec: RunSpec) -> Record:
    """Open the run's record: a new one or, where the claim says so, one that goes on."""
    settings, config = spec.settings, asdict(spec.settings)
    resumed = [*claim.before.get("resumed", []), {"at": now()}] if claim.before else []
    several = settings.processes
    start = ["torchrun", "--nproc-per-node", str(several)] if several else ["python"]
    given = originals(spec.overrides)
    told = ["fsdp=true"] if settings.fsdp and "fsdp=true" not in given else []  # accelerate was told of it
    words = redacted([*start, "-m", "lora_zoo.run", *given, *told])
    record = Record(
        claim.folder,
        claim.before,
        name=spec.name,
        identity=spec.identity,
        made_of=spec.made_of,
        command=shlex.join(words),
        config=config,
        seed=settings.seed,
        data_seed=settings.data_seed,
        **({"resumed": resumed} if resumed else {}),
    )
    write_atomically(claim.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(redacted(config))))
    return record


def _asks_for_more(settings: Settings, claim: FolderClaim) -> bool:
    """True if a finished run lacks something that its settings now ask for and that changes no result."""
    judged = set(claim.before.get("metrics", {}))
    present = {split for split in settings.eval_splits if split in claim.before.get("data", {})}
    unmeasured = settings.forgetting_text not in (None, AUTO) and not is_measured(claim.before)
    unmerged = settings.merge and not (claim.folder / "merged").is_dir()
    return claim.before["state"] == "done" and (not present <= judged or unmerged or unmeasured)


def _finished_before(claim: FolderClaim, console: Console) -> int:
    state = claim.before["state"]
    console.print(f"{state} already: {claim.folder}", markup=False, highlight=False, soft_wrap=True)
    return _code(state, trial=claim.before["config"].get("trial", False))


def _code(state: str, *, trial: bool) -> int:
    """The exit code of what has ended: that a trial diverged is what it was made to find out."""
    return int(state != "done" and not (trial and state == "diverged"))


def _kept(experiment: Experiment) -> int:
    try:
        return _recorded(experiment)
    except OSError as refusal:  # what ended the run stands in no record
        text = f"{refusal.filename or experiment.record.folder}: {refusal.strerror or refusal}"
        _complain(experiment.context.console, f"failed: the record cannot be written: {text}")
        return 1


def _recorded(experiment: Experiment) -> int:
    record, console, began = experiment.record, experiment.context.console, time.perf_counter()
    if experiment.settings.threads:
        torch.set_num_threads(experiment.settings.threads)  # for the data, too
    record.update(environment=environment())
    state, code, error = _outcome(experiment)
    timings = record.content.get("timings", {}) | {"total": time.perf_counter() - began}
    memory = record.content.get("memory", {}) | peak_memory()
    if error is None:
        record.end(state, timings=timings, memory=memory)
        show = summary.print_line if experiment.context.group else summary.print_run
        show(record, console)
        return code
    _log.error("%s", "".join(traceback.format_exception(error)))
    about = {"type": type(error).__name__, "message": str(error)}
    record.end(state, timings=timings, memory=memory, error=about)
    _complain(console, f"{state}: {_one_line(error)}")
    console.print(f"the record and run.log lie in {record.folder}", highlight=False, soft_wrap=True)
    return code


class Outcome(NamedTuple):
    """The end of a run: its state, the exit code and what broke it."""

    state: str
    code: int
    error: Exception | None = None


def _outcome(experiment: Experiment) -> Outcome:
    """Run to the end, whatever that is: a run that breaks costs no other run. A stop goes on its way."""
    try:
        experiment.run()
    except Diverged as divergence:
        return Outcome("diverged", _code("diverged", trial=experiment.settings.trial), divergence)
    except Pruned as end:
        return Outcome("interrupted", 0, end)
    except ValueError as mistake:
        return Outcome("failed", 1 if experiment.underway else 2, mistake)
    except Exception as failure:
        return Outcome("failed", 1, failure)
    except KeyboardInterrupt as stop:
        context = experiment.context
        context.signals.leave(partial(_interrupted, experiment.record, context.console, stop))
        raise
    finally:
        experiment.context.resources.give_back()
    return Outcome("done", 0)


def _interrupted(record: Record, console: Console, told: KeyboardInterrupt) -> None:
    record.end("interrupted", error={"type": type(told).__name__, "message": str(told) or "stopped"})
    staged = [*record.folder.glob(f"{STAGES}/*/adapter"), *record.folder.glob(f"{STAGES}/*/checkpoints/c*")]
    saved = [*(record.folder / "checkpoints").glob("checkpoint-*"), *staged]
    text = f"interrupted; the results so far are in {record.folder}"
    console.print(text, style="yellow", highlight=False, soft_wrap=True)
    how = "from its last checkpoint" if saved else "from the start, as it had no checkpoint yet"
    console.print(f"resume=true continues {how}", style="yellow", highlight=False)


def _complain(console: Console, text: str) -> None:
    line = redacted(in_one_line(text))
    console.print(f"lora_zoo: {line}", style="red", markup=False, highlight=False, soft_wrap=True)


def _one_line(error: BaseException) -> str:
    text = in_one_line(error)
    return text if isinstance(error, (ValueError, Diverged, Pruned)) else f"{type(error).__name__}: {text}"
