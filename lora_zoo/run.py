"""The front door: `python -m lora_zoo.run +variant=dora rank=8`.

Exit codes: 0 everything asked for was done; 1 a run failed or diverged; 2 the command line or its data cannot
be run as given; 128 + n stopped by signal n (130 Ctrl-C, 143 SIGTERM), `resume=true` goes on.
"""

import gc
import os
import sys
import tempfile
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lora_zoo.config import command_line, compose, help_text, schema
from lora_zoo.config.groups import folder
from lora_zoo.config.schema import Settings
from lora_zoo.launchers import joblib
from lora_zoo.runs.record import claim_folder, made, write_atomically
from lora_zoo.runs.redact import redacted
from lora_zoo.terminal import say
from lora_zoo.training.signals import Stopped

schema.register()


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for and leave with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help"}.isdisjoint(given):
        print(help_text.text())
        return
    try:
        sys.exit(_run(given))
    except compose.Mistake as mistake:
        print(f"lora_zoo: {redacted(str(mistake))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as told:
        sys.exit(getattr(told, "code", 130))


def _run(given: list[str]) -> int:
    try:
        _refuse_secrets(given)
        ready = command_line.rewritten(given)
    except ValueError as error:
        raise compose.Mistake(str(error)) from error
    multirun = command_line.is_multirun(ready)
    jobs = compose.check(command_line.overrides(ready), multirun=multirun)
    if not multirun:
        _hydra(ready)
        return max(OUTCOMES, default=0)
    if all(settings.dry_run for settings in jobs):
        with tempfile.TemporaryDirectory() as nowhere:  # Hydra writes a sweep's overrides to its folder
            return max(_swept(ready, Path(nowhere)), default=0)
    sweep = _sweep_folder(ready, jobs[0])
    codes = _swept(ready, sweep)
    if codes:  # none with --cfg and the like
        from lora_zoo.runs.summary import print_sweep

        print_sweep(sweep)
        if jobs[0].experiment:
            _conclude(sweep)
    return int(any(codes))


def _conclude(sweep: Path) -> None:
    """Table, verdicts and report of an experiment, of what there is; trouble with them costs no run."""
    from lora_zoo import report

    try:
        report.conclude(sweep)
    except (ValueError, OSError) as trouble:
        say(f"no report: {trouble}; python -m lora_zoo.report {sweep} tries again")


def _swept(ready: list[str], sweep: Path) -> list[int]:
    """Run the sweep in its folder and return the exit code of each job."""
    arguments = [*ready, f"hydra.sweep.dir={sweep}"]
    if not joblib.asked_for(ready):
        _hydra(arguments)
        return _outcomes(sweep)
    with joblib.Front(sweep).conducting() as front:
        try:
            _hydra([*arguments, *joblib.defaults(ready)])
        except BrokenExecutor as death:
            if front.asked is None:
                say(f"{death}; the same command does what is missing")
            return [*_outcomes(sweep), 1]
        finally:
            if front.asked is not None:
                _outcomes(sweep)
                raise Stopped(front.asked)
    return _outcomes(sweep)


def _outcomes(sweep: Path) -> list[int]:
    told = list(sweep.glob(f"{_OUTCOME}*"))
    codes = [int(path.read_text()) for path in told]
    for path in told:
        path.unlink()
    return codes


def _refuse_secrets(given: list[str]) -> None:
    harmless = ("", "null", "none", "true", "false")
    for argument in given:
        key, _, value = argument.lstrip("+~").partition("=")
        if value.lower() not in harmless and redacted({key: value}) != {key: value}:
            raise ValueError(
                f"{key} holds a secret, and a command line is read by others: set it in the environment "
                "(HF_TOKEN, WANDB_API_KEY) and leave it out here"
            )


def _hydra(arguments: list[str]) -> None:
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out, instead of ending the process with a traceback
    try:
        hydra.main(version_base="1.3", config_path=str(folder()), config_name="config")(job)()
    except BrokenExecutor:
        raise
    except Exception as error:
        raise compose.Mistake(compose.said(error, [])) from error


def _sweep_folder(ready: list[str], first: Settings) -> Path:
    """The folder that the user gives with hydra.sweep.dir, else one named after the sweep.

    The same sweep goes on in the same folder, unless resume=false asks for a new one.
    """
    given = [a.partition("=")[2] for a in ready if a.startswith("hydra.sweep.dir=")]
    if given:
        return Path(given[-1])
    name = command_line.sweep_name(ready)
    try:
        return claim_folder(first.out, name) if first.resume is False else made(Path(first.out) / name)
    except OSError as refusal:
        raise compose.Mistake(f"out={first.out}: {refusal.strerror or refusal}") from refusal


OUTCOMES: list[int] = []
"""The exit code of each job that ran in this process."""
_OUTCOME = ".outcome-"


def job(config: DictConfig, **shared: Any) -> None:
    """One run; what goes wrong in it is recorded and costs no other run of the sweep.

    `shared` is what a launcher gives to jobs that it runs side by side: see `lora_zoo.training.runner.run`.
    """
    from lora_zoo.training.runner import run

    if not OUTCOMES:
        gc.freeze()  # what is imported stays: the collector need not look at its million objects again
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode != RunMode.MULTIRUN:
        OUTCOMES.append(run(config, overrides, None))
        return
    sweep = Path(hydra_config.sweep.dir)
    if joblib.stopped(sweep):
        return
    if joblib.is_one():
        joblib.enter(sweep, hydra_config.launcher.n_jobs)
        code = joblib.uninterrupted(lambda: run(config, overrides, str(sweep), progress=False))
    else:
        code = run(config, overrides, str(sweep), **shared)
    OUTCOMES.append(code)
    # In a file, since a launcher's jobs run in processes of their own.
    write_atomically(sweep / f"{_OUTCOME}{hydra_config.job.num}", str(code))


if __name__ == "__main__":
    from lora_zoo.run import main as front_door  # under its own name, by which workers find `job`

    front_door()
