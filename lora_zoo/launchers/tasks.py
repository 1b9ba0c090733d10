"""Runs in tasks on other machines (`hydra/launcher=ray`, `submitit_local`, `submitit_slurm`).

A task is a process of a cluster that makes several runs of a sweep, one after the other, and keeps the base
that they share. What is finished is not submitted; what the tasks have made is read from the sweep's folder,
which all machines share.
"""

import contextlib
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, final

from lora_zoo.config.choices import TYPED
from lora_zoo.config.schema import Settings
from lora_zoo.config.spec import RunSpec
from lora_zoo.launchers.base import LAUNCHERS, Launcher
from lora_zoo.launchers.joblib import uninterrupted
from lora_zoo.terminal import say
from lora_zoo.training.signals import Stopped, handle

STOP = ".stop"
"""The file in a sweep's folder by which tasks know, between two runs, that no further one is to begin."""
STOPPED = 128
"""Exit codes from here on are those of runs that a signal stopped."""


class Cluster(Launcher):
    """The surroundings of a sweep whose runs are made in tasks."""

    package: ClassVar[str]
    extra: ClassVar[str]

    @classmethod
    def check(cls, asked: Mapping[str, str], jobs: int) -> None:
        """Raise ValueError where the package is not installed."""
        if importlib.util.find_spec(cls.package) is None:
            raise ValueError(
                f"hydra/launcher={cls.name} needs {cls.package}: pip install 'lora_zoo[{cls.extra}]'"
            )

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Inside, a signal is raised as Stopped, and the launcher stops its tasks; a second one ends all."""
        (self.sweep / STOP).unlink(missing_ok=True)
        before = handle(self._received)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        handle(lambda again, _: os._exit(128 + again))
        (self.sweep / STOP).touch()
        raise Stopped(number)


@LAUNCHERS.register("ray")
class Ray(Cluster):
    """Tasks of a Ray cluster."""

    package = extra = "ray"


@LAUNCHERS.register("submitit_local")
class SubmititLocal(Cluster):
    """Tasks in processes of this machine, as submitit would give them to Slurm."""

    package = extra = "submitit"


@LAUNCHERS.register("submitit_slurm")
class SubmititSlurm(Cluster):
    """Tasks in a job array of Slurm."""

    package = extra = "submitit"


@final
@dataclass(frozen=True)
class SweepTask:
    """Several runs of a sweep: `runs` are their identities, settings and overrides.

    A task has the working directory and the words of the process in front; it can be pickled.
    """

    sweep: str
    runs: Sequence[tuple[str, Settings, Sequence[str]]]
    folder: str = field(default_factory=os.getcwd)
    typed: str = field(default_factory=lambda: os.environ.get(TYPED, "{}"))

    def __call__(self) -> list[int]:
        """Make the runs and return their exit codes, up to one that was stopped."""
        os.chdir(self.folder)
        os.environ |= {TYPED: self.typed, "TOKENIZERS_PARALLELISM": "false"}
        codes: list[int] = []
        for run in self.runs:
            if (codes and codes[-1] >= STOPPED) or (Path(self.sweep) / STOP).exists():
                break
            codes.append(uninterrupted(partial(self._made, *run)))
        return codes

    def _made(self, identity: str, settings: Settings, overrides: Sequence[str]) -> int:
        from lora_zoo.runs.identity import specify
        from lora_zoo.training import runner

        spec = specify(settings, overrides)
        if spec.identity != identity:
            say(f"{spec.name} is another run here: this machine has other sources of lora_zoo or other data")
            return 2
        return runner.run(spec, self.sweep, progress=False)

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """The task as Slurm is to begin it again, where submitit's signal has stopped it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


Ended = list[int] | Exception
"""The exit codes of a task's runs; or what ended the task."""


def launched(
    specs: Sequence[RunSpec | None],
    sweep: Path,
    size: int,
    run: Callable[[list[SweepTask]], list[Ended]],
) -> dict[int, int]:
    """Make the runs that are missing in tasks of at most `size` runs; the exit code of each by its number.

    Runs of one base and task of learning are in the same tasks. `run` takes tasks and waits for them.
    """
    from lora_zoo.training.runner import is_over

    missing = {
        number: spec
        for number, spec in enumerate(specs)
        if spec is not None and not spec.settings.dry_run and not is_over(spec, sweep)
    }
    if not missing:
        return {}
    groups: dict[str, list[int]] = {}
    for number, spec in missing.items():
        groups.setdefault(f"{spec.settings.model} {spec.settings.task.name}", []).append(number)
    chunks = [own[i : i + size] for own in groups.values() for i in range(0, len(own), size)]
    say(f"{len(missing)} of {len(specs)} runs are missing: {len(chunks)} tasks of at most {size}")
    tasks = [SweepTask(str(sweep), [_described(missing[number]) for number in chunk]) for chunk in chunks]
    codes = dict.fromkeys(missing, 1)  # of a run that its task did not come to
    for chunk, ended in zip(chunks, run(tasks), strict=True):
        if isinstance(ended, Exception):
            say(f"a task was lost: {ended}; the same command runs what is missing")
        else:
            codes |= dict(zip(chunk, ended, strict=False))
    return codes


def _described(spec: RunSpec) -> tuple[str, Settings, Sequence[str]]:
    return spec.identity, spec.settings, spec.overrides
