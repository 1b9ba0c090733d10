"""A sweep with lr=auto: the trials by which each cell's rate is chosen, and the plan that its folder keeps.

The plan stands in `.rates.json`, with what was found, from where `lora_zoo.runs.load` gives it to each run.
Cells that differ in seeds alone have one rate. A trial is a run of the sweep's folder that is shorter and of
another seed, judged on validation alone; it is marked, so that no table counts it as a result.

Short runs are judged by the likelihood of the references, since hardly any whole answer is right yet; the
last rung by the metric.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import pandas as pd

from lora_zoo.analysis.halving import FoundRate, Score, Trial, Unended, grid, halve, rungs
from lora_zoo.analysis.protocol import better, chosen_by
from lora_zoo.config.spec import RunSpec
from lora_zoo.runs import load
from lora_zoo.runs.loading import RATES
from lora_zoo.sweeps.cells import Launch, Overrides, Specify, check_seed, with_keys, without_keys
from lora_zoo.sweeps.plans import check_plan, keep, keep_found, kept
from lora_zoo.terminal import say

TRIAL = {
    "trial": "true",
    "eval_splits": "[validation]",
    "eval_before_training": "false",
    "forgetting_text": "null",
    "merge": "false",
}
"""What makes a run a trial, which no test set is shown to."""
SEEDS = ("seed", "data_seed")


@final
@dataclass(frozen=True)
class RatePlan:
    """The rules by which rates are chosen: `key` is the key that is set, `value` what tables compare."""

    key: str
    count: int
    budget: int
    seed: int
    value: str = "test"


class RateSweep:
    """The trials of the sweep in `folder`, of cells by their overrides, which give no rate."""

    def __init__(self, folder: Path, cells: Sequence[Overrides], plan: RatePlan) -> None:
        self.folder, self.cells, self.plan = folder, cells, plan
        self.groups: dict[tuple[str, ...], list[int]] = {}
        for number, cell in enumerate(cells):
            self.groups.setdefault(tuple(without_keys(cell, SEEDS)), []).append(number)
        self.seconds = 0.0
        """Seconds that the trials took, in this process and before."""

    def run(self, launch: Launch, specify: Specify) -> list[Overrides] | None:
        """The cells, each at its rate; less those without one, of which a trial failed. None if interrupted.

        ValueError where the folder holds another plan, or trials have no score to choose by.
        """
        check_plan(self.folder, RATES, "rates", asdict(self.plan))
        check_seed(self.cells, "rates.seed", self.plan.seed)
        keep(self.folder, RATES, asdict(self.plan))
        began, spent = time.monotonic(), float(kept(self.folder, RATES).get("seconds", 0.0))
        known = {group: specify(self.cells[own[0]]) for group, own in self.groups.items()}
        able = [
            _Cell(group, spec, self.plan, specify)
            for group, spec in known.items()
            if spec is not None  # a cell that cannot be run complains as a job
        ]
        trials = _Trials(self.folder, able, launch, self.plan)
        try:
            found = halve(
                [grid(cell.middle, self.plan.count) for cell in able],
                self.plan.budget,
                launch=trials.launch,
                read=trials.read,
            )
        except Unended as open_:
            say(f"lr=auto: {open_}; the same command continues")
            return None
        finally:
            self.seconds = spent + time.monotonic() - began
            keep(self.folder, RATES, {"seconds": self.seconds})
        rates = {cell.group: one for cell, one in zip(able, found, strict=True)}
        keep_found(self.folder, RATES, {group: str(one) for group, one in rates.items()})
        return self._rated(rates)

    def _rated(self, rates: Mapping[tuple[str, ...], FoundRate]) -> list[Overrides]:
        found: list[tuple[int, Overrides]] = []
        for group, own in self.groups.items():
            if group not in rates:
                found += [(number, self.cells[number]) for number in own]
            elif not math.isnan(rate := rates[group].rate):
                found += [(number, with_keys(self.cells[number], {self.plan.key: rate})) for number in own]
        return [cell for _, cell in sorted(found)]


class _Cell:
    """One cell that has trials: its own rate, and the overrides and the identity of each trial."""

    def __init__(self, group: tuple[str, ...], spec: RunSpec, plan: RatePlan, specify: Specify) -> None:
        self.group, self.plan, self.specify = group, plan, specify
        settings = spec.settings
        self.middle: float = settings.lr if plan.key == "lr" else settings.task.lr
        self.epochs = {} if settings.epochs is None else {"epochs": "null"}
        self.identities: dict[Trial, str | None] = {}

    def job(self, trial: Trial) -> list[str]:
        length = {**self.epochs, "steps": trial.steps}
        return with_keys(self.group, {**TRIAL, **length, self.plan.key: trial.rate, "seed": self.plan.seed})

    def identity(self, trial: Trial) -> str | None:
        if trial not in self.identities:
            spec = self.specify(self.job(trial))
            self.identities[trial] = spec.identity if spec else None
        return self.identities[trial]


class _Trials:
    """The trials of all cells: launched, and read from the sweep's folder."""

    def __init__(self, folder: Path, cells: Sequence[_Cell], run: Launch, plan: RatePlan) -> None:
        self.folder, self.cells, self.run, self.value = folder, cells, run, plan.value
        self.longest = rungs(plan.count, plan.budget)[-1].steps
        self.launched: set[Trial] = set()

    def launch(self, trials: list[Trial]) -> None:
        self.launched |= set(trials)
        self.run([self.cells[trial.cell].job(trial) for trial in trials])

    def read(self, trials: list[Trial]) -> dict[Trial, Score | None]:
        """The scores of the trials that have ended; one that failed is tried again by another process."""
        try:
            frame = load(self.folder, trials=True).drop_duplicates("run", keep="last")
        except ValueError:  # no trial yet
            return {}
        found: dict[Trial, Score | None] = {}
        for trial in trials:
            run = frame[frame["run"] == self.cells[trial.cell].identity(trial)]
            state = "" if run.empty else run["state"].iloc[0]
            if state in ("done", "diverged"):
                last = trial.steps == self.longest
                found[trial] = score(run, self.value, last=last) if state == "done" else ()
            elif state == "failed" and trial in self.launched:
                found[trial] = None
        return found


def score(run: pd.DataFrame, value: str, *, last: bool) -> Score:
    """The validation score of a run, more being better: the likelihood before the metric, in the `last` rung
    after it, or alone where `value`, which tables compare, is one.

    ValueError where the run has none.
    """
    names = [chosen_by(run, value), "validation_nll"]
    values = {n: float(run[n].iloc[0]) for n in (names if last else reversed(names)) if n in run}
    values = {name: number for name, number in values.items() if not math.isnan(number)}
    if not values:
        raise ValueError(f"lr=auto chooses by validation scores, and {run['name'].iloc[0]} has none")
    return tuple(number if better(run, name) == "higher" else -number for name, number in values.items())
