"""`hydra/launcher=ray`, `submitit_local`, `submitit_slurm`: a sweep's missing runs, several to a task."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

from lora_zoo.config.spec import RunSpec
from lora_zoo.launchers.specified import SpecifiedLauncher, Start

_HERE = "hydra_plugins.lora_zoo_tasks.launcher"


@dataclass
class RayConf:
    _target_: str = f"{_HERE}.RayLauncher"
    runs_per_task: int = 4
    address: str = ""
    """Of a cluster that is there; "" for RAY_ADDRESS or, without it, one of this machine for this sweep."""
    cpus: float = 1.0
    gpus: float | None = None


@dataclass
class LocalConf:
    _target_: str = f"{_HERE}.SubmititLauncher"
    runs_per_task: int = 4
    cluster: str = "local"
    timeout_min: int = 60
    cpus_per_task: int = 1


@dataclass
class SlurmConf(LocalConf):
    cluster: str = "slurm"
    gpus_per_node: int | None = 1
    mem_gb: float | None = None
    slurm_partition: str | None = None
    slurm_qos: str | None = None
    slurm_constraint: str | None = None
    slurm_array_parallelism: int = 256
    slurm_setup: list[str] | None = None
    slurm_additional_parameters: dict[str, Any] = field(default_factory=dict)


for name, node in (("ray", RayConf), ("submitit_local", LocalConf), ("submitit_slurm", SlurmConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="lora_zoo")


class TaskLauncher(SpecifiedLauncher):
    """Runs what is missing in tasks of `runs_per_task` runs."""

    def __init__(self, runs_per_task: int) -> None:
        if runs_per_task < 1:
            raise ValueError(f"hydra.launcher.runs_per_task must be at least 1; got {runs_per_task}")
        self.runs_per_task = runs_per_task

    def launch_specified(
        self, specs: Sequence[RunSpec | None], start: Start, sweep: Path
    ) -> Sequence[JobReturn]:
        from lora_zoo.launchers.tasks import launched

        codes = launched(specs, sweep, self.runs_per_task, lambda tasks: self.run_tasks(tasks, sweep))
        return [start(number, code=codes.get(number)) for number in range(len(specs))]

    @abstractmethod
    def run_tasks(self, tasks: list[Any], sweep: Path) -> list[Any]:
        """Wait for the tasks and return what ended each."""


class RayLauncher(TaskLauncher):
    """Tasks of a Ray cluster, each with `cpus` and `gpus` of its own; gpus=null: one, if there is any."""

    def __init__(self, runs_per_task: int, address: str, cpus: float, gpus: float | None) -> None:
        super().__init__(runs_per_task)
        self.how: dict[str, Any] = {"address": address, "cpus": cpus, "gpus": gpus}

    def run_tasks(self, tasks: list[Any], sweep: Path) -> list[Any]:
        from lora_zoo.launchers import on_ray

        return on_ray.run(tasks, **self.how)


class SubmititLauncher(TaskLauncher):
    """Tasks by submitit; `parameters` are its own."""

    def __init__(self, runs_per_task: int, cluster: str, **parameters: Any) -> None:
        super().__init__(runs_per_task)
        self.cluster, self.parameters = cluster, parameters

    def run_tasks(self, tasks: list[Any], sweep: Path) -> list[Any]:
        from omegaconf import OmegaConf

        from lora_zoo.launchers import on_submitit

        held: Any = OmegaConf.to_container(OmegaConf.create(self.parameters), resolve=True)
        given = {name: value for name, value in held.items() if value not in (None, {}, [])}
        return on_submitit.run(tasks, cluster=self.cluster, sweep=sweep, parameters=given)
