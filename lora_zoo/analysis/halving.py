"""Learning rates by successive halving, at one total budget of steps for every cell.

    found = halve(2, grid(0.02), budget=6000, launch=launch, read=read)
    found[0].rate; found[0].steps; str(found[0])

Successive halving (Jamieson & Talwalkar 2016): all rates with few steps, the better half with twice as many,
and so on down to two; every rung costs the same. A run of a rung trains *the whole schedule over its own
steps*: one that is cut off at a third of a cosine has not annealed, and would flatter small rates.

Where the best of a rung is the least or the greatest rate tried, the rate beyond it takes the place of the
worst that would have gone on: the number of runs and their steps stay the same for all cells. Scores are
those of validation; a run that diverged has none, and is worse than any that has.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final


class Trial(NamedTuple):
    """A run to choose a rate by: the number of a cell, a learning rate, and the steps of its schedule."""

    cell: int
    rate: float
    steps: int


class Rung(NamedTuple):
    runs: int
    steps: int


@final
@dataclass
class FoundRate:
    """The rate of one cell. `edge` is least or greatest where no further rate could be tried beyond it."""

    rate: float = math.nan
    edge: str = ""
    scores: dict[tuple[float, int], float] = field(default_factory=dict)
    """(rate, steps): the score on validation, nan where the run diverged."""

    @property
    def steps(self) -> int:
        """The steps that were spent on the choice."""
        return sum(steps for _, steps in self.scores)

    def __str__(self) -> str:
        tried = sorted({rate for rate, _ in self.scores})
        lost = sum(math.isnan(score) for score in self.scores.values())
        parts = [f"{self.rate:g} of {len(tried)} rates from {tried[0]:g} to {tried[-1]:g}"]
        parts.append(f"{self.steps:,} steps in {len(self.scores)} runs")
        parts += [f"{lost} diverged"] if lost else []
        parts += [f"the {self.edge} rate tried: a better may lie beyond"] if self.edge else []
        return "; ".join(parts)


def grid(middle: float, count: int = 8, factor: float = 2.0) -> list[float]:
    """`count` rates around `middle`, each `factor` times the one before."""
    if not (middle > 0 and factor > 1 and count >= 4):
        raise ValueError(
            f"a grid needs a middle above 0, a factor above 1 and 4 rates; got {middle}, {factor}, {count}"
        )
    return [float(f"{middle * factor ** (i - count // 2):.6g}") for i in range(count)]


def rungs(count: int, budget: int) -> list[Rung]:
    """The rungs for `count` rates: half as many runs each time, down to two, at the same cost each.

    ValueError where the budget is less than a step for each run.
    """
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    found = [Rung(runs, budget // (len(sizes) * runs)) for runs in sizes]
    if found[0].steps < 1:
        raise ValueError(
            f"a budget of {budget} steps is too small for {count} rates; give {len(sizes) * count}"
        )
    return found


def halve(
    cells: int,
    rates: Sequence[float],
    budget: int,
    *,
    launch: Callable[[list[Trial]], object],
    read: Callable[[], Mapping[Trial, float]],
    better: str = "higher",
) -> list[FoundRate]:
    """Choose a rate for each of so many cells, with `budget` steps for each.

    `launch` runs trials, however it likes; `read` gives the validation scores of all that have ended, nan of
    those that diverged. What `read` knows is not launched. RuntimeError where trials come to no end.
    """
    rates = sorted(set(rates))
    if len(rates) < 3:
        raise ValueError(f"halving needs at least 3 learning rates; got {len(rates)}")
    factor = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
    found, current = [FoundRate() for _ in range(cells)], [list(rates) for _ in range(cells)]
    plan = rungs(len(rates), budget)
    for number, rung in enumerate(plan):
        trials = [Trial(cell, rate, rung.steps) for cell in range(cells) for rate in current[cell]]
        known = read()
        if missing := [trial for trial in trials if trial not in known]:
            launch(missing)
            known = read()
        if lost := [trial for trial in trials if trial not in known]:
            raise RuntimeError(f"{len(lost)} of {len(trials)} runs came to no end, the first {lost[0]}")
        for trial in trials:
            found[trial.cell].scores[trial.rate, trial.steps] = known[trial]
        left = plan[number + 1].runs if number + 1 < len(plan) else 1
        for cell in range(cells):
            scores = {t.rate: known[t] for t in trials if t.cell == cell}
            current[cell] = _survivors(found[cell], scores, left, factor, better)
    for cell, one in enumerate(found):
        one.rate = current[cell][0]
        one.edge = _edge(one, one.rate)
    return found


def _survivors(
    found: FoundRate, scores: Mapping[float, float], left: int, factor: float, better: str
) -> list[float]:
    """The best rates of a rung, of equal ones those next to the middle, of diverged ones the least.

    The worst of them gives way to one beyond the edge where that is the best.
    """
    sign, tried = 1 if better == "higher" else -1, sorted({rate for rate, _ in found.scores})
    far = {rate: abs(math.log(rate / tried[len(tried) // 2])) for rate in scores}
    equal = sorted(scores, key=lambda rate: rate if math.isnan(scores[rate]) else far[rate])
    ranked = sorted(equal, key=lambda rate: _merit(sign * scores[rate]), reverse=True)
    kept, edge = ranked[:left], _edge(found, ranked[0])
    if left > 1 and edge:
        beyond = ranked[0] / factor if edge == "least" else ranked[0] * factor
        kept[-1] = float(f"{beyond:.6g}")
    return kept


def _edge(found: FoundRate, rate: float) -> str:
    tried = {rate for rate, _ in found.scores}
    return "least" if rate == min(tried) else "greatest" if rate == max(tried) else ""


def _merit(score: float) -> float:
    return -math.inf if math.isnan(score) else score
