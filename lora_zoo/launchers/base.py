"""Launchers: the surroundings of a sweep in the process in front, and the way one of its runs is run.

Hydra's plugin of the same name brings the jobs to their processes. A plugin that is no member of LAUNCHERS is
taken as `basic`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lora_zoo.config.compose import settings_of_job
from lora_zoo.config.spec import RunSpec
from lora_zoo.core.registry import Registry

LAUNCHERS: "Registry[type[Launcher]]" = Registry("launcher", "lora_zoo.launchers", attribute="name")


@LAUNCHERS.register("basic")
class Launcher:
    """One run after the other, in the process that the user started."""

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, str]] = {}
    """Settings of Hydra's launcher, where the command line does not give them."""

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        self.broken = False
        """True where the sweep ended early, so that some of its runs have no outcome."""

    @classmethod
    def check(cls, asked: Mapping[str, str], jobs: int) -> None:
        """Raise ValueError where the launcher's settings, as `asked`, do not suit the machine."""

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Surround the sweep, in the process in front. Raises Stopped where a signal ended it."""
        yield

    def run(self, run: Callable[..., int], config: Any) -> int | None:
        """The exit code of one run, None where no further one is to begin.

        `run` takes by keyword how it is to be run: see `lora_zoo.training.runner`. `config` is Hydra's
        configuration of its launcher.
        """
        return run()


def launcher(name: str) -> type[Launcher]:
    """The launcher of this name."""
    return LAUNCHERS.get(name, Launcher)


def spec_of(overrides: Sequence[str]) -> RunSpec | None:
    """The run of a job; None where it cannot be run: the job itself complains."""
    from lora_zoo.runs.identity import specify  # it needs torch

    try:
        return specify(settings_of_job(overrides), overrides)
    except ValueError:
        return None
