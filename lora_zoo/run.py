"""The front door: `python -m lora_zoo.run +variant=dora rank=8`.

Exit codes: 0 everything asked for was done; 1 a run failed or diverged; 2 the command line or its data cannot
be run as given; 128 + n stopped by signal n (130 Ctrl-C, 143 SIGTERM), `resume=true` goes on.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lora_zoo.configuration import commandline, helptext, precheck, settings
from lora_zoo.configuration.choices import folder
from lora_zoo.configuration.settings import Settings
from lora_zoo.results.record import claim_folder, made, write_atomically
from lora_zoo.results.secrets import redacted

settings.register()


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for and leave with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help"}.isdisjoint(given):
        print(helptext.text())
        return
    try:
        sys.exit(_run(given))
    except precheck.Mistake as mistake:
        print(f"lora_zoo: {redacted(str(mistake))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as told:
        sys.exit(getattr(told, "code", 130))


def _run(given: list[str]) -> int:
    try:
        _refuse_secrets(given)
        ready = commandline.rewritten(given)
    except ValueError as error:
        raise precheck.Mistake(str(error)) from error
    multirun = commandline.is_multirun(ready)
    jobs = precheck.check(commandline.overrides(ready), multirun=multirun)
    if multirun and all(settings.dry_run for settings in jobs):
        with tempfile.TemporaryDirectory() as nowhere:  # Hydra writes a sweep's overrides to its folder
            _hydra([*ready, f"hydra.sweep.dir={nowhere}"])
        return max(OUTCOMES, default=0)
    sweep = _sweep_folder(ready, jobs[0]) if multirun else None
    _hydra([*ready, *([f"hydra.sweep.dir={sweep}"] if sweep else [])])
    return _exit_code(sweep)


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
    except Exception as error:
        raise precheck.Mistake(precheck.said(error, [])) from error


def _sweep_folder(ready: list[str], first: Settings) -> Path:
    """The folder that the user gives with hydra.sweep.dir, else one named after the sweep.

    The same sweep goes on in the same folder, unless resume=false asks for a new one.
    """
    given = [a.partition("=")[2] for a in ready if a.startswith("hydra.sweep.dir=")]
    if given:
        return Path(given[-1])
    name = commandline.sweep_name(ready)
    try:
        return claim_folder(first.out, name) if first.resume is False else made(Path(first.out) / name)
    except OSError as refusal:
        raise precheck.Mistake(f"out={first.out}: {refusal.strerror or refusal}") from refusal


OUTCOMES: list[int] = []
"""The exit code of each job that ran in this process."""
_OUTCOME = ".outcome-"


def job(config: DictConfig, **shared: Any) -> None:
    """One run; what goes wrong in it is recorded and costs no other run of the sweep.

    `shared` is what a launcher gives to jobs that it runs side by side: see `lora_zoo.training.job.run`.
    """
    from lora_zoo.training.job import run

    hydra_config = HydraConfig.get()
    sweep = hydra_config.sweep.dir if hydra_config.mode == RunMode.MULTIRUN else None
    code = run(config, list(hydra_config.overrides.task), sweep, **shared)
    OUTCOMES.append(code)
    if sweep:  # a launcher's jobs run in processes of their own
        write_atomically(Path(sweep) / f"{_OUTCOME}{hydra_config.job.num}", str(code))


def _exit_code(sweep: Path | None) -> int:
    if sweep is None:
        return max(OUTCOMES, default=0)
    from lora_zoo.results.summary import print_sweep

    told = list(sweep.glob(f"{_OUTCOME}*"))
    codes = [int(path.read_text()) for path in told]
    for path in told:
        path.unlink()
    if codes:  # none with --cfg and the like
        print_sweep(sweep)
    return int(any(codes))


if __name__ == "__main__":
    main()
