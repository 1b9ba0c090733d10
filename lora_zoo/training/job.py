"""One run, from composed settings to a complete record."""

import contextlib
import logging
import shlex
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lora_zoo.adapters.adapter import Variant
from lora_zoo.adapters.registry import find_variant
from lora_zoo.configuration import commandline
from lora_zoo.configuration.settings import Settings, resolved
from lora_zoo.results import summary
from lora_zoo.results.environment import environment, peak_memory
from lora_zoo.results.identity import identity, readable_name, without_effect
from lora_zoo.results.record import Record, claim_folder, write_atomically
from lora_zoo.training.dryrun import dry_run
from lora_zoo.training.experiment import Diverged, Experiment

_log = logging.getLogger("lora_zoo")


def run(config: DictConfig, overrides: list[str], sweep: str | None) -> int:
    """Run one configuration and return its exit code: 0 done, 1 failed or diverged, 2 a mistake in the input.

    `sweep` is the sweep's folder; the run's own is made inside it, or under `settings.out`.
    """
    console = Console()
    try:
        settings = resolved(config)
        variant = find_variant(settings.variant["name"])
    except (ValueError, KeyError) as mistake:
        console.print(f"lora_zoo: {mistake}", style="red", markup=False, highlight=False)
        return 2
    for name in without_effect(settings, variant, overrides):
        console.print(f"note: {name} has no effect with variant={variant.name}", style="yellow")
    if settings.dry_run:
        return dry_run(settings, variant, console)
    code = identity(settings, variant)
    name = readable_name(settings, variant)
    folder = claim_folder(sweep or settings.out, f"{name}-{code}")
    record = Record(
        folder,
        name=name,
        identity=code,
        command=shlex.join(["python", "-m", "lora_zoo.run", *commandline.originals(overrides)]),
        config=asdict(settings),
        seed=settings.seed,
        data_seed=settings.data_seed,
    )
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    with _logging_to(folder / "run.log"):
        return _recorded(settings, variant, record, console, Path(sweep).name if sweep else None)


def _recorded(
    settings: Settings, variant: type[Variant], record: Record, console: Console, group: str | None
) -> int:
    began = time.perf_counter()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    record.update(environment=environment())
    error: Exception | None = None
    state, code = "done", 0
    try:
        Experiment(settings, variant, record, console, group).run()
    except Diverged as divergence:
        state, error, code = "diverged", divergence, 1
    except ValueError as mistake:
        state, error, code = "failed", mistake, 2
    except KeyboardInterrupt:
        record.end("interrupted", error={"type": "KeyboardInterrupt", "message": "stopped by the user"})
        console.print(f"interrupted; what there is lies in {record.folder}", style="yellow")
        raise
    except (
        Exception
    ) as failure:  # the boundary of a run: whatever broke it is recorded and costs no other run
        state, error, code = "failed", failure, 1
    timings = record.content.get("timings", {}) | {"total": time.perf_counter() - began}
    said = {"error": {"type": type(error).__name__, "message": str(error)}} if error else {}
    record.end(state, timings=timings, memory=peak_memory(), **said)
    if error is None:
        show = summary.print_line if group else summary.print_run
        show(record, console)
    else:
        _log.error("%s", "".join(traceback.format_exception(error)))
        console.print(f"lora_zoo: {state}: {_one_line(error)}", style="red", markup=False, highlight=False)
        console.print(f"the record and run.log lie in {record.folder}", highlight=False)
    return code


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, Diverged)) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send log records and warnings to the run's own file, and keep libraries' chatter off the terminal."""
    import transformers

    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level, others = root.level, root.handlers
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.disable_progress_bar()
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers = others
        root.setLevel(level)
        handler.close()
