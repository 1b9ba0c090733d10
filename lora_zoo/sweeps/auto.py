"""A sweep with lr=auto, seed=auto or both: its plans as Hydra's sweeper takes them, and its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_zoo.analysis.halving import rungs
from lora_zoo.analysis.rounds import CLAIM, Plan, families
from lora_zoo.config import auto, compose
from lora_zoo.config.auto import AUTO, Plans
from lora_zoo.config.schema import Settings
from lora_zoo.sweeps.cells import Launch, Overrides, Specify, keys_of
from lora_zoo.sweeps.rates import RatePlan, RateSweep
from lora_zoo.sweeps.seeds import SeedSweep, grouped
from lora_zoo.sweeps.until_claim import check_claim

TIMES = 3
"""The budget of a cell's trials where none is given, in lengths of one of its runs."""


def planned(plans: Plans, overrides: Sequence[str], jobs: Sequence[Settings], *, multirun: bool) -> list[str]:
    """The overrides that give Hydra's sweeper the plans. ValueError where there is nothing to do."""
    auto.check_sweep(plans, overrides, multirun=multirun)
    experiment, found = jobs[0].experiment, dict[str, dict[str, Any]]()
    value = (plans.seeds and plans.seeds.value) or experiment.get("value") or "test"
    if plans.rates:
        _check_warm_up(jobs)
        budget = plans.rates.budget or _budget(jobs)
        rungs(plans.rates.count, budget)
        found["rates"] = asdict(plans.rates) | {"budget": budget, "key": plans.rate, "value": value}
    if plans.seeds:
        tune = [t for t in experiment.get("tune") or [] if not (plans.rates and AUTO.get(t) == "rates")]
        keys = keys_of(compose.combinations(overrides))
        plan = asdict(plans.seeds) | {"value": value, "tune": tune}
        if plans.seeds.against.startswith(CLAIM):
            check_claim(Plan(**plan), experiment.get("name", ""))
        else:
            families([dict(key) for key in grouped(keys, tune)], plans.seeds.against)
        found["seeds"] = plan
    return ["hydra/sweeper=auto", *(f"++hydra.sweeper.{group}={_written(p)}" for group, p in found.items())]


def _budget(jobs: Sequence[Settings]) -> int:
    """The default budget of the trials of each cell. ValueError where runs have no one length in steps."""
    lengths = {job.steps or (None if job.epochs else job.task.steps) for job in jobs}
    (steps,) = lengths if len(lengths) == 1 else (None,)
    if steps is None:
        known = sorted(length for length in lengths if length)
        told = f"of {known} steps" if len(known) == len(lengths) else "given in epochs"
        raise ValueError(
            f"lr=auto spends as many steps on each cell, and the runs are {told}: give rates.budget=STEPS"
        )
    return TIMES * steps


def _check_warm_up(jobs: Sequence[Settings]) -> None:
    """ValueError for a warm-up of so many steps, which would be a greater part of a trial than of a run."""
    for job in jobs:
        steps = job.trainer.get("warmup_steps", 0)
        if isinstance(steps, (int, float)) and steps >= 1:
            said = f"trainer.warmup_steps={steps} is a number of steps, and the trials of lr=auto are shorter"
            raise ValueError(f"{said} than runs: give a share below 1")


def _written(value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", r"\'") + "'"
    return "null" if value is None else str(value)


def sweep(
    folder: Path,
    cells: Sequence[Overrides],
    plans: Mapping[str, Mapping[str, Any]],
    launch: Launch,
    specify: Specify,
) -> None:
    """Run the cells: at the rates that are found for them, over the seeds that are needed."""
    seeds, rates = plans["seeds"], plans["rates"]
    found, spent, apart = list(cells), 0.0, tuple[str, ...]()
    if rates:
        trials = RateSweep(folder, cells, RatePlan(**rates))
        rated = trials.run(launch, specify)
        if rated is None:
            return
        found, spent, apart = rated, trials.seconds, (rates["key"],)
    if not seeds:
        launch(found)
        return
    plan = Plan(**{**seeds, "tune": tuple(seeds["tune"])})
    SeedSweep(folder, found, plan, apart).run(launch, specify, spent)
