"""Learning rates by successive halving, at one total budget of steps for every cell.

    found = halve([grid(0.02), grid(0.002)], budget=6000, launch=launch, read=read)
    found[0].rate; found[0].steps; str(found[0])

Successive halving (Jamieson & Talwalkar 2016): all rates with few steps, the better half with twice as many,
and so on down to two; every rung costs the same. A run of a rung trains *the whole schedule over its own
steps*: one that is cut off at a third of a cosine has not annealed, and would flatter small rates.

Where the best of a rung is the least or the greatest rate tried, the rate beyond it takes the place of the
worst that would have gone on: the number of runs and their steps stay the same for all cells. A score is
a tuple of numbers of which more is better, each one deciding where those before are equal; that of a run
that diverged is (), less than any.
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


Score = tuple[float, ...]


class Unended(RuntimeError):
    """Trials that were launched have come to no end."""


class Rung(NamedTuple):
    runs: int
    steps: int


@final
@dataclass
class FoundRate:
    """The rate of one cell, nan where a trial failed.

    `edge` is least or greatest where no further rate could be tried beyond it.
    """

    rate: float = math.nan
    edge: str = ""
    scores: dict[tuple[float, int], Score] = field(default_factory=dict)
    """(rate, steps): the score on validation, () where the run diverged."""

    @property
    def steps(self) -> int:
        """The steps that were spent on the choice."""
        return sum(steps for _, steps in self.scores)

    def __str__(self) -> str:
        if math.isnan(self.rate):
            return "none: a trial failed"
        tried, lost = sorted({rate for rate, _ in self.scores}), list(self.scores.values()).count(())
        parts = [f"{self.rate:g} of {len(tried)} rates from {tried[0]:g} to {tried[-1]:g}"]
        parts.append(f"{self.steps:,} steps in {len(self.scores)} runs")
        parts += [f"{lost} diverged"] if lost else []
        parts += [f"the {self.edge} rate tried: a better may lie beyond"] if self.edge else []
        return ", ".join(parts)


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
    grids: Sequence[Sequence[float]],
    budget: int,
    *,
    launch: Callable[[list[Trial]], object],
    read: Callable[[list[Trial]], Mapping[Trial, Score | None]],
) -> list[FoundRate]:
    """Choose a rate for each cell, out of a grid of its own, with `budget` steps for each.

    `launch` runs trials, however it likes; `read` gives the scores of those that have ended, None of those
    that failed: their cell is left without a rate. What `read` knows is not launched. ValueError for grids of
    different sizes; Unended where trials come to no end.
    """
    current = [sorted(set(rates)) for rates in grids]
    sizes = {len(rates) for rates in current}
    if len(sizes) > 1 or min(sizes, default=3) < 3:
        raise ValueError(f"halving needs as many learning rates for each cell, at least 3; got {sizes}")
    factors = [(rates[-1] / rates[0]) ** (1 / (len(rates) - 1)) for rates in current]
    found, plan = [FoundRate() for _ in grids], rungs(max(sizes, default=4), budget)
    for number, rung in enumerate(plan):
        trials = [Trial(cell, rate, rung.steps) for cell, rates in enumerate(current) for rate in rates]
        known = _ended(trials, launch, read)
        left = plan[number + 1].runs if number + 1 < len(plan) else 1
        for cell, rates in enumerate(current):
            scores = {t.rate: known[t] for t in trials if t.cell == cell}
            whole = {rate: score for rate, score in scores.items() if score is not None}
            found[cell].scores |= {(rate, rung.steps): score for rate, score in whole.items()}
            sound = len(whole) == len(rates) > 0
            current[cell] = _survivors(found[cell], whole, left, factors[cell]) if sound else []
    for one, rates in zip(found, current, strict=True):
        if rates:
            one.rate, one.edge = rates[0], _edge(one, rates[0])
    return found


def _ended(
    trials: list[Trial],
    launch: Callable[[list[Trial]], object],
    read: Callable[[list[Trial]], Mapping[Trial, Score | None]],
) -> Mapping[Trial, Score | None]:
    known = read(trials)
    if missing := [trial for trial in trials if trial not in known]:
        launch(missing)
        known = read(trials)
    if lost := [trial for trial in trials if trial not in known]:
        raise Unended(f"{len(lost)} of {len(trials)} runs came to no end, the first {lost[0]}")
    return known


def _survivors(found: FoundRate, scores: Mapping[float, Score], left: int, factor: float) -> list[float]:
    """The best rates of a rung; the worst of them gives way to one beyond the edge where that is the best."""
    ranked = sorted(sorted(scores), key=lambda rate: scores[rate], reverse=True)
    kept, edge = ranked[:left], _edge(found, ranked[0])
    if left > 1 and edge:
        beyond = ranked[0] / factor if edge == "least" else ranked[0] * factor
        kept[-1] = float(f"{beyond:.6g}")
    return kept


def _edge(found: FoundRate, rate: float) -> str:
    tried = {rate for rate, _ in found.scores}
    return "least" if rate == min(tried) else "greatest" if rate == max(tried) else ""
