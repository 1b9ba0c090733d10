"""The sweepers, by any launcher: of all jobs and, with `lr=auto` and `seed=auto`, of trials and rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from lora_zoo.sweeps.planned import PlannedSweeper
from lora_zoo.sweeps.progress import expect


@dataclass
class JobsConf:
    _target_: str = "hydra_plugins.lora_zoo_auto.sweeper.JobSweeper"


@dataclass
class AutoConf:
    _target_: str = "hydra_plugins.lora_zoo_auto.sweeper.AutoSweeper"
    seeds: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="auto", node=AutoConf, provider="lora_zoo")
ConfigStore.instance().store(group="hydra/sweeper", name="jobs", node=JobsConf, provider="lora_zoo")


class JobSweeper(BasicSweeper):
    """Hydra's own sweeper, which begins at once however many jobs there are."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose each choice of options once. The values have been checked; Hydra takes 0.1 s a job."""
        from lora_zoo.config.groups import GROUPS

        assert self.config is not None
        expect(Path(str(self.config.hydra.sweep.dir)), len(batch))
        chosen = [tuple(o for o in job if o.lstrip("+~").partition("=")[0] in GROUPS) for job in batch]
        super().validate_batch_is_legal([*dict(zip(chosen, batch, strict=True)).values()])


class AutoSweeper(PlannedSweeper):
    """Sweeps over all keys but those that it gives itself, by the plans for them; {}: as given."""

    def __init__(self, seeds: dict[str, Any], rates: dict[str, Any]) -> None:
        super().__init__()
        self.seeds, self.rates = seeds, rates

    def sweep(self, arguments: list[str]) -> None:
        from lora_zoo.launchers.base import spec_of
        from lora_zoo.sweeps.auto import sweep

        assert self.config is not None and self.hydra_context is not None
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        (cells,) = self.split_arguments(parsed, None)
        plans = {"seeds": self.seeds, "rates": self.rates}
        sweep(Path(self.config.hydra.sweep.dir), cells, plans, self._launch, spec_of)
