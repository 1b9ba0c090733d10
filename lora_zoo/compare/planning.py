"""The plan of a comparison: the same steps for every cell to choose its rate, then seeds within the hours."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path

from lora_zoo.analysis.halving import Rung, rungs
from lora_zoo.compare.costs import Cost
from lora_zoo.core.bounded_json import read_json
from lora_zoo.runs.record import write_atomically

STATE = "plan.json"
FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25)
"""Rates that are tried, as multiples of a contender's own default, in the order in which hours are spent."""
MOST = 30
"""Seeds, at which planning stops."""
SLACK = 1.15
"""Planned seconds for each that the trial foretells: machines vary."""


@dataclass(frozen=True)
class Design:
    """The share of each cell: halving of `rates` on `tuning` seeds, then the best on up to `seeds`."""

    rates: int
    tuning: int
    seeds: int

    def budget(self, steps: int) -> int:
        """The steps of halving on one seed, so that its last two runs are as long as a run: `steps`."""
        return 2 * steps * (self.rates - 1).bit_length()

    def rungs(self, steps: int) -> list[Rung]:
        """ValueError where `steps` are too few."""
        if 2 * steps < self.rates:
            least = math.ceil(self.rates / 2)
            raise ValueError(f"a run of {steps} steps is too short to tune {self.rates} rates; give {least}")
        return rungs(self.rates, self.budget(steps))

    @property
    def runs(self) -> int:
        """The runs of one cell, at most."""
        return sum(rung.runs for rung in self.rungs(self.rates)) * self.tuning + self.seeds - self.tuning

    def words(self, steps: int) -> str:
        """The plan in words, where a run has `steps`."""
        parts = ", ".join(f"{rung.runs} x {rung.steps:,} steps" for rung in self.rungs(steps))
        seeds = f", on {self.tuning} seeds each" if self.tuning > 1 else ""
        return (
            f"{self.budget(steps) * self.tuning:,} steps to choose the rate by halving ({parts}{seeds}), "
            f"then the best at {steps:,} steps on {self.seeds} seeds or as many as decide"
        )


@dataclass
class State:
    """The design, for the seconds and the greatest number of seeds that were asked for, and what is spent."""

    design: Design
    limit: float
    asked: int
    spent: float = 0.0
    plans: int = 1

    def save(self, folder: Path) -> None:
        write_atomically(folder / STATE, json.dumps(asdict(self), indent=1))


def state_of(folder: Path) -> State | None:
    """The state in which an earlier call left the folder; None without one."""
    try:
        content = read_json(folder / STATE)
        return State(**content | {"design": Design(**content["design"])})
    except (OSError, ValueError, LookupError, TypeError):
        return None


WISHES = (Design(5, 3, 8), Design(5, 2, 5), Design(5, 1, 5), Design(4, 1, 4), Design(4, 1, 3))
"""From the best on, each with its fewest seeds; the last is the least that can come to a verdict."""


def seconds_of(design: Design, cost: Cost, steps: int, jobs: int) -> float:
    """Seconds that `jobs` workers need for one cell; they idle at the end of a sweep."""
    tuning = sum(
        math.ceil(rung.runs * design.tuning / jobs) * cost.seconds(rung.steps, test=rung.steps == steps)
        for rung in design.rungs(steps)
    )
    return SLACK * (tuning + math.ceil((design.seeds - design.tuning) / jobs) * cost.seconds(steps))


def needed(design: Design, costs: Sequence[Cost], steps: int, jobs: int) -> float:
    """Seconds that `jobs` workers need for all cells."""
    load = max((cost.load for cost in costs), default=0.0)
    return load + sum(seconds_of(design, cost, steps, jobs) for cost in costs)


def fitting(
    seconds: float,
    costs: Sequence[Cost],
    steps: int,
    *,
    jobs: int,
    rates: int = len(FACTORS),
    most: int = MOST,
) -> Design | None:
    """The best design that fits into `seconds`; None where not even the least does.

    `rates` are as many as there are to try, `most` the greatest number of seeds.
    """
    for wish in wishes(rates, most):
        if needed(wish, costs, steps, jobs) <= seconds:
            more = (replace(wish, seeds=seeds) for seeds in range(wish.seeds, most + 1))
            return [*takewhile(lambda d: needed(d, costs, steps, jobs) <= seconds, more)][-1]
    return None


def wishes(rates: int = len(FACTORS), most: int = MOST) -> list[Design]:
    """The designs with at most so many rates and seeds."""
    return [replace(w, rates=min(w.rates, rates), seeds=min(w.seeds, most)) for w in WISHES]


def rates_of(centre: float, factors: Sequence[float]) -> list[float]:
    """The rates of a cell in the order in which they are tried."""
    return [float(f"{centre * factor:.6g}") for factor in factors]
