"""`hydra/sweeper=optuna`: a search by validation scores for each cell of a sweep, by any launcher."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from lora_zoo.sweeps.planned import PlannedSweeper


@dataclass
class OptunaConf:
    _target_: str = "hydra_plugins.lora_zoo_optuna.sweeper.OptunaSweeper"
    n_trials: int = 20
    n_jobs: int = 1
    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 1000
    direction: str = ""


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="lora_zoo")

IN_PROCESS = ("basic", "packed")
"""Launchers whose runs can be given up in the middle, as they are in the sampler's own process."""


class OptunaSweeper(PlannedSweeper):
    """Searches `n_trials` configurations for each cell, `n_jobs` of each at a time."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = given

    def sweep(self, arguments: Sequence[str]) -> None:
        from lora_zoo.config.space import dimension, is_searched
        from lora_zoo.launchers.base import spec_of
        from lora_zoo.sweeps.search import Search, SearchPlan

        assert self.config is not None and self.hydra_context is not None
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(list(arguments))
        searched = [override for override in parsed if is_searched(override)]
        (cells,) = self.split_arguments([o for o in parsed if o not in searched], None)
        plan = SearchPlan(**self.given, space=shlex.join(str(o.input_line) for o in searched))
        launcher = str(self.config.hydra.runtime.choices["hydra/launcher"])
        if plan.pruner != "none" and launcher not in IN_PROCESS:
            raise ValueError(
                f"hydra.sweeper.pruner={plan.pruner} gives up runs of its own process, and those of "
                f"hydra/launcher={launcher} are not: leave one of them out"
            )
        folder = Path(self.config.hydra.sweep.dir)
        found = Search(folder, cells, [dimension(o) for o in searched], plan).run(self._launch, spec_of)
        if found:
            self._launch(found)
