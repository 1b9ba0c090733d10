"""`lr=auto` and `seed=auto`: a sweeper that launches trials of rates and rounds of seeds, by any launcher."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from lora_zoo.sweeps.planned import PlannedSweeper


@dataclass
class AutoConf:
    _target_: str = "hydra_plugins.lora_zoo_auto.sweeper.AutoSweeper"
    seeds: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="auto", node=AutoConf, provider="lora_zoo")


class AutoSweeper(PlannedSweeper):
    """Sweeps over all keys but those that it gives itself, by the plans for them; {}: as given."""

    def __init__(self, seeds: dict[str, Any], rates: dict[str, Any]) -> None:
        super().__init__()
        self.seeds, self.rates = seeds, rates

    def sweep(self, arguments: list[str]) -> None:
        from lora_zoo.sweeps.auto import sweep

        assert self.config is not None and self.hydra_context is not None
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        (cells,) = self.split_arguments(parsed, None)
        plans = {"seeds": self.seeds, "rates": self.rates}
        sweep(Path(self.config.hydra.sweep.dir), cells, plans, self._launch, self._spec)
