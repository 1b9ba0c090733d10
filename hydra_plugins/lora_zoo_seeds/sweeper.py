"""`seed=auto`: a sweeper that launches rounds of seeds, by any launcher, until comparisons are decided."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class SeedsConf:
    _target_: str = "hydra_plugins.lora_zoo_seeds.sweeper.SeedsSweeper"
    first: int = 3
    most: int = 20
    hours: float | None = None
    against: str = "best"
    margin: float = 0.0
    step: int = 1
    value: str = "test"
    tune: list[str] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="seeds", node=SeedsConf, provider="lora_zoo")


class SeedsSweeper(BasicSweeper):
    """Sweeps over all keys but the seed, which it gives itself."""

    def __init__(self, **plan: Any) -> None:
        super().__init__(max_batch_size=None)
        self.plan = plan

    def sweep(self, arguments: list[str]) -> None:
        from lora_zoo.analysis.rounds import Plan
        from lora_zoo.sweeps.seeds import SeedSweep

        assert self.config is not None and self.hydra_context is not None
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        (cells,) = self.split_arguments(parsed, None)
        plan = Plan(**self.plan | {"tune": tuple(self.plan["tune"])})
        SeedSweep(Path(self.config.hydra.sweep.dir), cells, plan).run(self._launch, self._identity)

    def _launch(self, jobs: Sequence[Sequence[str]], first: int) -> None:
        assert self.launcher is not None
        for returned in self.launcher.launch(jobs, initial_job_idx=first):
            _ = returned.return_value  # raises what broke the job

    def _identity(self, job: Sequence[str]) -> str | None:
        """The identity of a job's run; None where it cannot be run as given: the job itself complains."""
        from lora_zoo.launchers.base import spec_of

        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        spec = spec_of(config, job)
        return spec.identity if spec else None
