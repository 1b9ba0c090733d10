"""A sweep with hydra/sweeper=optuna: each of its cells gets a search of its own, of as many trials.

What a sweep gives in plain lists is compared (`variant=lora,dora seed=0,1`), what it gives as choice(…),
interval(…) or range(…) is searched for each cell; cells that differ in seeds alone share a search. A trial
is a run of the sweep's folder of another seed, judged on validation alone; it is marked, so that no table
counts it as a result. The cells then run with the best values that were found for them.

The plan stands in `.search.json`, with what was found, from where `lora_zoo.runs.load` gives it to each run;
the studies stand in `study.journal`.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from lora_zoo.analysis.columns import format_key
from lora_zoo.config.schema import INERT
from lora_zoo.config.space import Choice, Dimension
from lora_zoo.config.spec import RunSpec
from lora_zoo.metrics import facts
from lora_zoo.runs.loading import SEARCH
from lora_zoo.runs.record import finished_run, made, validation_of
from lora_zoo.sweeps.cells import Launch, Overrides, Specify, check_seed, keys_of, with_keys, without_keys
from lora_zoo.sweeps.plans import check_plan, keep, keep_found, kept
from lora_zoo.sweeps.rates import SEEDS, TRIAL
from lora_zoo.sweeps.study import SearchTrial, Study, check_names
from lora_zoo.terminal import say
from lora_zoo.training.pruning import WATCHED

JUDGES = ("task", *(f"task.{key}" for key in ("name", "type", "dataset", "splits", "sizes", "metrics")))
"""The keys that say what a score is of."""


@final
@dataclass(frozen=True)
class SearchPlan:
    """The rules of a search: `space` are its overrides as typed, `seed` is the sampler's and of all trials.

    `direction` is maximize or minimize, "" for what the metric declares. ValueError for what cannot be.
    """

    n_trials: int
    n_jobs: int
    sampler: str
    pruner: str
    seed: int
    direction: str
    space: str = ""

    def __post_init__(self) -> None:
        check_names(self.sampler, self.pruner)
        for name in ("n_trials", "n_jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"hydra.sweeper.{name} must be at least 1; got {getattr(self, name)}")
        if self.direction not in ("", "maximize", "minimize"):
            raise ValueError(f"hydra.sweeper.direction must be maximize or minimize; got {self.direction!r}")


@final
@dataclass
class _SearchedCell:
    """Cells that share a search: their numbers, the overrides that they share, and the metric they have."""

    name: str
    overrides: Overrides
    numbers: list[int]
    metric: str
    study: Study


class Search:
    """The search of the sweep in `folder`, for cells by their overrides, over the dimensions."""

    def __init__(
        self, folder: Path, cells: Sequence[Overrides], dimensions: Sequence[Dimension], plan: SearchPlan
    ) -> None:
        if not dimensions:
            raise ValueError(
                "hydra/sweeper=optuna has nothing to search: write for example "
                "'lr=tag(log,interval(1e-4,1e-1))' or 'rank=choice(2,4,8)'"
            )
        for dimension in dimensions:
            _check_key(dimension.key.lstrip("+"))
        self.folder, self.cells, self.dimensions, self.plan = made(folder), cells, dimensions, plan

    def run(self, launch: Launch, specify: Specify) -> list[Overrides] | None:
        """The cells, each with its best values; less those without a done trial. None if interrupted.

        ValueError where the folder holds another plan, or trials have no score to choose by.
        """
        chosen = asdict(self.plan)
        del chosen["n_jobs"]
        if "found" not in kept(self.folder, SEARCH):
            del chosen["n_trials"]  # as long as nothing was judged on test, more of them may be asked for
        check_plan(self.folder, SEARCH, "hydra.sweeper", chosen)
        check_seed(self.cells, "hydra.sweeper.seed", self.plan.seed)
        searches = self._searches(specify)
        keep(self.folder, SEARCH, asdict(self.plan) | {"keys": self._keys()})
        while open_ := [cell for cell in searches if cell.study.ended < self.plan.n_trials]:
            if not self._round(open_, launch, specify):
                say("the search is not finished; the same command continues")
                return None
        best = {cell.name: cell.study.best() for cell in searches}
        keep_found(self.folder, SEARCH, {tuple(cell.overrides): self._words(cell) for cell in searches})
        found = [
            (number, with_keys(self.cells[number], values))
            for cell in searches
            if (values := best[cell.name]) is not None
            for number in cell.numbers
        ]
        return [overrides for _, overrides in sorted(found)]

    def _keys(self) -> str:
        return ", ".join(d.key.lstrip("+") for d in self.dimensions)

    def _searches(self, specify: Specify) -> list[_SearchedCell]:
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, cell in enumerate(self.cells):
            groups.setdefault(tuple(without_keys(cell, SEEDS)), []).append(number)
        names = list(map(format_key, keys_of([list(group) for group in groups])))
        found = []
        for name, (group, numbers) in zip(names, groups.items(), strict=True):
            first = {d.key: d.values[0] for d in self.dimensions if isinstance(d, Choice)}
            spec = specify(with_keys(group, first))
            if spec is None:
                raise ValueError(f"{name} cannot be run as given")
            if spec.settings.dry_run:
                raise ValueError("hydra/sweeper=optuna searches by scores, and dry_run=true gives none")
            metric = spec.settings.task.metrics[0]
            how = {key: getattr(self.plan, key) for key in ("sampler", "pruner", "seed")}
            higher = self._higher(metric)
            if self.plan.pruner != "none" and not spec.settings.trainer.get("eval_steps"):
                raise ValueError(
                    f"hydra.sweeper.pruner={self.plan.pruner} compares validation in the middle of training: "
                    "give trainer.eval_steps=…"
                )
            study = Study(self.folder, " ".join(group) or "all", higher=higher, **how)
            found.append(_SearchedCell(name, group, numbers, metric, study))
        return found

    def _higher(self, metric: str) -> bool:
        """True if higher scores are better: as the metric declares it, else as the plan says."""
        declared, asked = facts(metric).higher_is_better, self.plan.direction
        if declared is None and not asked:
            what = "hydra.sweeper.direction=maximize or minimize"
            raise ValueError(f"{metric} does not say which way is better: give {what}")
        if asked and declared is not None and declared != (asked == "maximize"):
            better = "higher" if declared else "lower"
            raise ValueError(
                f"hydra.sweeper.direction={asked} would look for the worst: {metric} is better {better}"
            )
        return bool(declared) if declared is not None else asked == "maximize"

    def _round(self, cells: Sequence[_SearchedCell], launch: Launch, specify: Specify) -> bool:
        """Run the next trials of each cell, and tell its study; False where one has come to no end."""
        asked: list[tuple[_SearchedCell, SearchTrial, RunSpec | None]] = []
        jobs: dict[str, Overrides] = {}
        left = [self.plan.n_trials - cell.study.ended for cell in cells]
        for cell, trials in zip(cells, left, strict=True):
            for _ in range(min(self.plan.n_jobs, trials)):
                trial = cell.study.ask(self.dimensions)
                job = with_keys(cell.overrides, {**TRIAL, "seed": self.plan.seed, **trial.values})
                spec = specify(job)
                asked.append((cell, trial, spec))
                jobs.setdefault(spec.identity if spec else " ".join(job), job)
        watched = {
            spec.identity: trial.watch(cell.metric)
            for cell, trial, spec in asked
            if spec and self.plan.pruner != "none"
        }
        WATCHED.update(watched)
        try:
            launch(list(jobs.values()), sum(left) - len(asked) + len(self.cells))
        finally:
            for identity in watched:
                del WATCHED[identity]
        pruned = {spec.identity for _, trial, spec in asked if spec and trial.pruned}
        return all([self._ended(trial, spec, pruned) for _, trial, spec in asked])

    def _ended(self, trial: SearchTrial, spec: RunSpec | None, pruned: Set[str]) -> bool:
        """Tell the study how a trial ended; False where it did not."""
        if spec is None or spec.identity in pruned:  # without a run it has said why
            trial.tell("pruned" if spec else "failed")
            return True
        run = finished_run(self.folder, f"{spec.name}-{spec.identity}", ("done", "diverged", "failed"))
        if run is None:
            return False
        if run.before["state"] != "done":
            trial.tell(run.before["state"])
            return True
        value = validation_of(run.before)
        if math.isnan(value):
            raise ValueError(f"a search chooses by validation scores, and {spec.name} has none")
        trial.tell("done", value, run.before.get("likelihood", {}).get("validation", {}).get("nll"))
        return True

    def _words(self, cell: _SearchedCell) -> str:
        best = cell.study.best()
        values = {key.lstrip("+"): value for key, value in (best or {}).items()}
        chosen = format_key(values) if best is not None else "none: no trial is done"
        counted = cell.study.searched([d.key for d in self.dimensions if isinstance(d, Choice)])
        return f"{chosen} ({counted.replace('; ', ', ')})"


def _check_key(key: str) -> None:
    """Raise ValueError for a key whose values no validation score can choose between."""
    if key in SEEDS:
        raise ValueError(f"{key} is not searched, as no seed is better than another: give a list of seeds")
    if key.partition(".")[0] in (*INERT, *TRIAL):
        raise ValueError(f"{key} is not searched: no training depends on it; give one value")
    if key in JUDGES:
        raise ValueError(f"{key} is not searched: scores of different tasks do not compare; give a list")
