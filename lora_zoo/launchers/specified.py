"""Hydra's launchers of our own: the jobs of a sweep are specified in the process in front."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from lora_zoo.config.spec import RunSpec

Start = Callable[..., JobReturn]
"""Runs one job in this process: its number, and what `lora_zoo.run.job` takes by keyword."""


class SpecifiedLauncher(Launcher):
    """A launcher that knows the run of each of its jobs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lora_zoo.launchers.base import spec_of

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep = Path(str(self.config.hydra.sweep.dir))
        sweep.mkdir(parents=True, exist_ok=True)
        specs = [*map(spec_of, job_overrides)]

        def start(number: int, **shared: Any) -> JobReturn:
            return run_job(
                hydra_context=self.hydra_context,
                task_function=partial(self.task_function, **shared | {"spec": specs[number]}),
                config=self._config(initial_job_idx + number, job_overrides[number]),
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )

        return self.launch_specified(specs, start, sweep)

    @abstractmethod
    def launch_specified(
        self, specs: Sequence[RunSpec | None], start: Start, sweep: Path
    ) -> Sequence[JobReturn]:
        """Run the jobs and return what each gave, in order. None: one that cannot be run as given."""

    def _config(self, number: int, overrides: Sequence[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config
