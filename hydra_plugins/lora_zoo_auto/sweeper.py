"""`lr=auto` and `seed=auto`: a sweeper that launches trials of rates and rounds of seeds, by any launcher."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class AutoConf:
    _target_: str = "hydra_plugins.lora_zoo_auto.sweeper.AutoSweeper"
    seeds: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="auto", node=AutoConf, provider="lora_zoo")


class AutoSweeper(BasicSweeper):
    """Sweeps over all keys but those that it gives itself, by the plans for them; {}: as given."""

    def __init__(self, seeds: dict[str, Any], rates: dict[str, Any]) -> None:
        super().__init__(max_batch_size=None)
        self.seeds, self.rates, self.launched = seeds, rates, 0

    def sweep(self, arguments: list[str]) -> None:
        from lora_zoo.sweeps.auto import sweep

        assert self.config is not None and self.hydra_context is not None
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        (cells,) = self.split_arguments(parsed, None)
        plans = {"seeds": self.seeds, "rates": self.rates}
        sweep(Path(self.config.hydra.sweep.dir), cells, plans, self._launch, self._spec)

    def _launch(self, jobs: Sequence[Sequence[str]]) -> None:
        assert self.launcher is not None
        first, self.launched = self.launched, self.launched + len(jobs)
        for returned in self.launcher.launch(jobs, initial_job_idx=first):
            _ = returned.return_value  # raises what broke the job

    def _spec(self, job: Sequence[str]) -> Any:
        """A job's run; None where it cannot be run as given: the job itself complains."""
        from lora_zoo.launchers.base import spec_of

        assert self.config is not None and self.hydra_context is not None
        return spec_of(self.hydra_context.config_loader.load_sweep_config(self.config, list(job)), job)
