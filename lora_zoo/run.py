"""The front door: `python -m lora_zoo.run +variant=dora rank=8`.

Exit codes: 0 everything asked for was done; 1 a run failed or diverged; 2 the command line or its data cannot
be run as given; 128 + n stopped by signal n (130 Ctrl-C, 143 SIGTERM), `resume=true` goes on.
"""

import gc
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lora_zoo.config import auto, command_line, compose, help_text, schema
from lora_zoo.config.groups import folder
from lora_zoo.config.schema import Settings
from lora_zoo.config.spec import RunSpec
from lora_zoo.launchers.base import Launcher, launcher
from lora_zoo.runs.processes import let_speak, refuse_sweep, speaks, take_part, wait_passively
from lora_zoo.runs.record import claim_folder, finished_run, made, validation_of
from lora_zoo.runs.redact import redacted
from lora_zoo.sweeps import progress
from lora_zoo.terminal import say

schema.register()
OUTCOMES: list[int] = []
"""The exit code of each job that Hydra ran in this process."""


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for and leave with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    wait_passively()
    if not {"-h", "--help"}.isdisjoint(given):
        print(help_text.text())
        return
    try:
        code = _run(given)
    except compose.Mistake as mistake:
        code = 2
        if speaks():
            print(f"lora_zoo: {redacted(str(mistake))}", file=sys.stderr)
    except KeyboardInterrupt as stop:
        sys.exit(getattr(stop, "code", 130))
    if code:
        let_speak()
    sys.exit(code)


def _run(given: list[str]) -> int:
    try:
        take_part()
        _refuse_secrets(given)
        flags = command_line.parse(given)
        ready, plans = auto.taken(command_line.rewritten(given))
        if flags.multirun or plans.asked:
            refuse_sweep()
    except ValueError as error:
        raise compose.Mistake(str(error)) from error
    overrides = command_line.overrides(ready)
    jobs = compose.check(overrides, multirun=flags.multirun)
    plan = _planned(plans, overrides, jobs, multirun=flags.multirun) if plans.asked else []
    if flags.cfg or flags.info or flags.hydra_help or flags.resolve:
        _hydra(ready)
        return 0
    if flags.multirun:
        return _sweep(ready, jobs, plan, plans.asked)
    if any(override.lstrip("+").startswith("hydra") for override in overrides):
        _hydra(ready)
        return max(OUTCOMES, default=0)
    try:
        return _one(_specified(lambda: jobs[0], overrides))
    except Exception as error:
        raise compose.Mistake(compose.explain(error)) from error


def _refuse_secrets(given: list[str]) -> None:
    harmless = ("", "null", "none", "true", "false")
    for argument in given:
        key, _, value = argument.lstrip("+~").partition("=")
        if value.lower() not in harmless and redacted({key: value}) != {key: value}:
            raise ValueError(
                f"{key} holds a secret, and a command line is read by others: set it in the environment "
                "(HF_TOKEN, WANDB_API_KEY) and leave it out here"
            )


def _planned(plans: auto.Plans, overrides: list[str], jobs: list[Settings], *, multirun: bool) -> list[str]:
    """The overrides that give Hydra's sweeper the plans. Mistake where there is nothing to do."""
    from lora_zoo.sweeps.auto import planned  # it needs pandas

    try:
        return planned(plans, overrides, jobs, multirun=multirun)
    except ValueError as error:
        raise compose.Mistake(str(error)) from error


def sweep(given: list[str]) -> int:
    """Run the sweep of a command line that another command has made, and return its greatest exit code.

    Raises Mistake where it cannot be run.
    """
    ready = command_line.rewritten(given)
    jobs = compose.check(command_line.overrides(ready), multirun=True)
    _check_sweep(ready, jobs)
    return max(_swept(ready, _sweep_folder(ready, jobs[0])), default=0)


def _sweep(ready: list[str], jobs: list[Settings], plan: list[str], asked: Sequence[str]) -> int:
    _check_sweep(ready, jobs)
    if all(settings.dry_run for settings in jobs):
        with tempfile.TemporaryDirectory() as nowhere:  # Hydra writes a sweep's overrides to its folder
            return max(_swept(ready, Path(nowhere)), default=0)
    sweep = _sweep_folder([*ready, *asked], jobs[0])
    codes = _swept([*ready, *plan], sweep)
    if codes or plan:
        from lora_zoo.report.of_sweep import print_sweep
        from lora_zoo.runs.summary import print_plans

        print_sweep(sweep)
        print_plans(sweep)
        if jobs[0].experiment:
            _conclude(sweep)
    return int(any(codes))


def _check_sweep(ready: list[str], jobs: list[Settings]) -> None:
    """Mistake for a `trainer.` key of any job, one that needs more processes, or a launcher that cannot run.

    No folder has been made.
    """
    from lora_zoo.runs.together import divided
    from lora_zoo.training.arguments import check_trainer

    asked = {name: given[-1] for name in ("hydra.launcher.n_jobs",) if (given := _values(ready, name))}
    try:
        for settings in jobs:
            check_trainer(settings.trainer)
            divided(settings)
        _launcher(ready).check(asked, len(jobs))
    except ValueError as error:
        raise compose.Mistake(str(error)) from error


def _launcher(ready: list[str]) -> type[Launcher]:
    return launcher((_values(ready, "hydra/launcher") or ["basic"])[-1])


def _sweep_folder(ready: list[str], first: Settings) -> Path:
    """The folder that the user gives with hydra.sweep.dir, else one named after the sweep.

    The same sweep goes on in the same folder, unless resume=false asks for a new one.
    """
    if given := _values(ready, "hydra.sweep.dir"):
        return Path(given[-1])
    name = command_line.sweep_name(ready)
    try:
        return claim_folder(first.out, name) if first.resume is False else made(Path(first.out) / name)
    except OSError as refusal:
        raise compose.Mistake(f"out={first.out}: {refusal.strerror or refusal}") from refusal


def _values(ready: list[str], key: str) -> list[str]:
    return [value for name, _, value in (a.lstrip("+").partition("=") for a in ready) if name == key]


def _swept(ready: list[str], sweep: Path) -> list[int]:
    """Run the sweep in its folder and return the exit code of each job."""
    chosen = _launcher(ready)(sweep)
    keys = {f"hydra.launcher.{key}": value for key, value in chosen.defaults.items()}
    defaults = [f"{key}={value}" for key, value in keys.items() if not _values(ready, key)]
    progress.clear(sweep)
    try:
        with chosen.around():
            _hydra([*ready, f"hydra.sweep.dir={sweep}", *defaults])
    finally:
        codes = progress.codes(sweep)
        progress.clear(sweep)
    return [*codes, 1] if chosen.broken else codes


def _conclude(sweep: Path) -> None:
    """Table, verdicts and report of an experiment, of what there is; trouble with them costs no run."""
    from lora_zoo import report

    try:
        report.conclude(sweep)
    except (ValueError, OSError) as trouble:
        say(f"no report: {trouble}; python -m lora_zoo.report {sweep} tries again")


def _hydra(arguments: list[str]) -> None:
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out, instead of ending the process with a traceback
    try:
        hydra.main(version_base="1.3", config_path=str(folder()), config_name="config")(job)()
    except BrokenExecutor:
        raise
    except Exception as error:
        raise compose.Mistake(compose.explain(error)) from error


def job(
    config: DictConfig, spec: RunSpec | None = None, code: int | None = None, **shared: Any
) -> float | None:
    """One run, and its validation score; what goes wrong in it is recorded and costs no other run of a sweep.

    The score is that of the metric that counts, which declares its direction; nan where the run has come to
    none, None for a dry run. No test set has a part in it, so that any sweeper of Hydra's may search by it.

    `spec` and `shared` come from a launcher that has made the one and shares the other among its jobs; `code`
    from one that has made the run elsewhere.
    """
    if not OUTCOMES:
        gc.freeze()  # what is imported stays: the collector need not look at its million objects again
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    spec = spec or _specified(partial(compose.settings_of, config, overrides), overrides)
    if hydra_config.mode != RunMode.MULTIRUN:
        OUTCOMES.append(_one(spec, **shared))
        return _score(spec, _ended(spec, Path(spec.settings.out) if spec else Path()))
    sweep = Path(hydra_config.sweep.dir)
    chosen = launcher(hydra_config.runtime.choices["hydra/launcher"])(sweep)
    began = time.time()
    one = partial(_one, spec, sweep=str(sweep), **shared)
    ended = chosen.run(one, hydra_config.launcher) if code is None else code
    record = _ended(spec, sweep)
    if ended is not None:
        OUTCOMES.append(ended)
        has_run = code is None and _has_run(spec, record, began)
        progress.note(sweep, hydra_config.job.num, ended, began if has_run else None)
        if has_run and (told := progress.progress(sweep)):
            print(told, flush=True)
    return _score(spec, record)


def _specified(settings: Callable[[], Settings], overrides: Sequence[str]) -> RunSpec | None:
    """The run that is asked for; None where it cannot be made, which has been said."""
    from lora_zoo.runs.identity import specify

    try:
        return specify(settings(), overrides)
    except (ValueError, OSError) as mistake:
        if speaks():
            say(str(mistake))
        return None


def _one(spec: RunSpec | None, **how: Any) -> int:
    """Make one run, if it could be specified, and return its exit code."""
    from lora_zoo.training import runner

    return runner.run(spec, **how) if spec else 2


def _ended(spec: RunSpec | None, root: Path) -> dict[str, Any] | None:
    """The record of the run in `root`, where it is finished there."""
    done = spec and not spec.settings.dry_run and finished_run(root, f"{spec.name}-{spec.identity}")
    return done.before if done else None


def _has_run(spec: RunSpec | None, record: dict[str, Any] | None, began: float) -> bool:
    """True where a job made a run since it `began`; False where there was none to make."""
    if spec is None or spec.settings.dry_run:
        return False
    ended = record.get("ended") if record else None
    return record is None or bool(ended and datetime.fromisoformat(ended).timestamp() >= int(began))


def _score(spec: RunSpec | None, record: dict[str, Any] | None) -> float | None:
    if spec and spec.settings.dry_run:
        return None
    return validation_of(record) if record else math.nan


if __name__ == "__main__":
    from lora_zoo.run import main as front_door  # under its own name, by which workers find `job`

    front_door()
