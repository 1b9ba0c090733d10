"""The plan of a comparison: as many rates and seeds for every cell as the hours hold.

Every cell gets the same: so many rates on so many seeds to tune by validation, further rates where the best
lies at an edge (the same allowance for each), then further seeds of the best rate for the verdict on test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25)
"""Rates that are tried, as multiples of a contender's own default, in the order in which hours are spent."""
MOST = 30
"""Seeds, at which planning stops."""
SLACK = 1.15
"""Planned seconds for each that the trial foretells: workers idle at the end of a sweep, machines vary."""


@dataclass(frozen=True)
class Design:
    """The share of each cell: `rates`, `spare` more at the edges, on `tuning` seeds; then `seeds`."""

    rates: int
    spare: int
    tuning: int
    seeds: int

    @property
    def runs(self) -> int:
        """The runs of one cell, at most."""
        return (self.rates + self.spare) * self.tuning + max(self.seeds - self.tuning, 0)

    def __str__(self) -> str:
        return (
            f"{self.rates} rates x {self.tuning} seeds, up to {self.spare} more rates where the best lies at "
            f"an edge, then the best on {self.seeds} seeds or as many as decide"
        )


WISHES = (Design(5, 2, 3, 8), Design(5, 2, 2, 5), Design(5, 2, 1, 5), Design(3, 2, 1, 4), Design(3, 1, 1, 3))
"""From the best on, each with its fewest seeds; the last is the least that can come to a verdict."""


def needed(design: Design, runs: Sequence[float], loads: Sequence[float], jobs: int) -> float:
    """Seconds that `jobs` workers need, where a run of each cell takes `runs` seconds."""
    work = sum(design.runs * seconds for seconds in runs)
    return SLACK * work / jobs + max(loads, default=0.0)


def fitting(
    seconds: float,
    runs: Sequence[float],
    loads: Sequence[float],
    *,
    jobs: int,
    rates: int = len(FACTORS),
    most: int = MOST,
) -> Design | None:
    """The best design that fits into `seconds`; None where not even the least does.

    `rates` are as many as there are to try, `most` the greatest number of seeds.
    """
    for wish in WISHES:
        design = replace(wish, rates=min(wish.rates, rates), spare=wish.spare if rates > 1 else 0)
        if needed(design, runs, loads, jobs) <= seconds:
            while design.seeds < most and needed(_more(design), runs, loads, jobs) <= seconds:
                design = _more(design)
            return replace(design, seeds=min(design.seeds, most))
    return None


def _more(design: Design) -> Design:
    return replace(design, seeds=design.seeds + 1)


def least(runs: Sequence[float], loads: Sequence[float], jobs: int) -> float:
    """Seconds of the least design."""
    return needed(WISHES[-1], runs, loads, jobs)


def rates_of(centre: float, factors: Sequence[float]) -> list[float]:
    """The rates of a cell in the order in which they are tried."""
    return [float(f"{centre * factor:.6g}") for factor in factors]


def beyond(chosen: float, tried: Sequence[float]) -> float | None:
    """The rate to try next where the chosen one is the least or the greatest of several; else None."""
    ordered = sorted(tried)
    if len(ordered) < 2 or chosen not in (ordered[0], ordered[-1]):
        return None
    ends = (ordered[1], ordered[0]) if chosen == ordered[0] else (ordered[-2], ordered[-1])
    return float(f"{ends[1] * ends[1] / ends[0]:.6g}")
