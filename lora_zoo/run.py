"""The front door: `python -m lora_zoo.run +variant=dora rank=8`.

Exit codes: 0 everything asked for was done; 1 a run failed or diverged; 2 the command line or its data cannot
be run as given; 130 interrupted.
"""

import sys
import tempfile
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lora_zoo.configuration import commandline, helptext, precheck, settings
from lora_zoo.configuration.choices import folder
from lora_zoo.results.record import claim_folder

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
        print(f"lora_zoo: {mistake}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(given: list[str]) -> int:
    try:
        ready = commandline.rewritten(given)
    except ValueError as error:
        raise precheck.Mistake(str(error)) from error
    multirun = commandline.is_multirun(ready)
    jobs = precheck.check(commandline.overrides(ready), multirun=multirun)
    if multirun and all(settings.dry_run for settings in jobs):
        with tempfile.TemporaryDirectory() as nowhere:  # Hydra writes a sweep's overrides to its folder
            _hydra([*ready, f"hydra.sweep.dir={nowhere}"])
        return max(OUTCOMES, default=0)
    sweep = _sweep_folder(ready, jobs[0].out) if multirun else None
    _hydra([*ready, *([f"hydra.sweep.dir={sweep}"] if sweep else [])])
    return _exit_code(sweep)


def _hydra(arguments: list[str]) -> None:
    sys.argv = [sys.argv[0], *arguments]
    hydra.main(version_base="1.3", config_path=str(folder()), config_name="config")(job)()


def _sweep_folder(ready: list[str], out: str) -> Path:
    """The folder that the user gives with hydra.sweep.dir, else a new one named after the sweep."""
    given = [a.partition("=")[2] for a in ready if a.startswith("hydra.sweep.dir=")]
    return Path(given[-1]) if given else claim_folder(out, commandline.sweep_name(ready))


OUTCOMES: list[int] = []
"""The exit code of each job that ran in this process."""


def job(config: DictConfig) -> None:
    """One run; what goes wrong in it is recorded and costs no other run of the sweep."""
    from lora_zoo.training.job import run

    hydra_config = HydraConfig.get()
    sweep = hydra_config.sweep.dir if hydra_config.mode == RunMode.MULTIRUN else None
    OUTCOMES.append(run(config, list(hydra_config.overrides.task), sweep))


def _exit_code(sweep: Path | None) -> int:
    if sweep is None or not OUTCOMES:
        return max(OUTCOMES, default=0)
    from lora_zoo.results.summary import print_sweep

    print_sweep(sweep)
    return int(any(OUTCOMES))


if __name__ == "__main__":
    main()
