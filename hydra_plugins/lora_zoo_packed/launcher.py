"""`hydra/launcher=packed`: the compatible runs of a sweep train together on one frozen base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

from lora_zoo.config.spec import RunSpec
from lora_zoo.launchers.specified import SpecifiedLauncher, Start


@dataclass
class PackedConf:
    _target_: str = "hydra_plugins.lora_zoo_packed.launcher.PackedLauncher"
    max_jobs: int = 8


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedConf, provider="lora_zoo")


class PackedLauncher(SpecifiedLauncher):
    """Runs a sweep in this process, at most `max_jobs` runs side by side."""

    def __init__(self, max_jobs: int = 8) -> None:
        if max_jobs < 1:
            raise ValueError(f"hydra.launcher.max_jobs must be at least 1; got {max_jobs}")
        self.max_jobs = max_jobs

    def launch_specified(
        self, specs: Sequence[RunSpec | None], start: Start, sweep: Path
    ) -> Sequence[JobReturn]:
        from lora_zoo.launchers.packed.launch import launch

        return launch(specs, start, self.max_jobs)
