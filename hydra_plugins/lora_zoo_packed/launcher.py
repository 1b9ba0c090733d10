"""`hydra/launcher=packed`: the compatible runs of a sweep train together on one frozen base."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class PackedConf:
    _target_: str = "hydra_plugins.lora_zoo_packed.launcher.PackedLauncher"
    max_jobs: int = 8


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedConf, provider="lora_zoo")


class PackedLauncher(Launcher):
    """Runs a sweep in this process, at most `max_jobs` runs side by side."""

    def __init__(self, max_jobs: int = 8) -> None:
        if max_jobs < 1:
            raise ValueError(f"hydra.launcher.max_jobs must be at least 1; got {max_jobs}")
        self.max_jobs = max_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lora_zoo.launchers.base import spec_of
        from lora_zoo.launchers.packed.launch import launch

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        specs = [*map(spec_of, job_overrides)]

        def start(number: int, **shared: Any) -> JobReturn:
            shared["spec"] = specs[number]
            return run_job(
                hydra_context=self.hydra_context,
                task_function=partial(self.task_function, **shared),
                config=self._config(initial_job_idx + number, job_overrides[number]),
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )

        return launch(specs, start, self.max_jobs)

    def _config(self, number: int, overrides: Sequence[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config
