"""Verdicts of a comparison, from the frames of its runs: pure functions that train nothing.

Test is compared over the seeds of each cell's chosen rate, paired by seed, by `Rounds`: the error of all
verdicts together is that of its plan, though the seeds end as soon as all is decided. A verdict is *better*
or *worse* where its interval lies on one side of 0.

The negative log-likelihood of the test references, where runs keep it, is judged alike as a second score
with less noise; it is said beside the verdict and makes none. Its interval is over seeds alone, not over
items x seeds: critical values that hold at any stop come from the law of one t statistic whose sample grows
by a seed (`analysis.boundaries`). A test set is the same at every look, so that its part of the error neither
shrinks nor is drawn anew, and no such law is known for the two together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import pandas as pd

from lora_zoo.analysis.halving import FoundRate
from lora_zoo.analysis.integrity import sound
from lora_zoo.analysis.power import detectable, seeds_for
from lora_zoo.analysis.protocol import better
from lora_zoo.analysis.rounds import Plan, Rounds, Seen
from lora_zoo.analysis.sequential import Decision
from lora_zoo.analysis.statistics import Interval, interval
from lora_zoo.claims.doubts import IDLE, rising
from lora_zoo.compare.contenders import Comparison, Contender

FEWEST = 3


class Standing(StrEnum):
    """The outcome of one comparison."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "not distinguishable"
    NONE = "no verdict"


@dataclass(frozen=True, eq=False)
class CellRuns:
    """A cell's runs that count: `every`, `ended` those of the found rate and all steps, `runs` those done."""

    cell: Contender
    every: pd.DataFrame
    found: FoundRate
    ended: pd.DataFrame
    runs: pd.DataFrame
    doubts: tuple[str, ...]
    """Reasons why no verdict may rest on it."""

    def values(self, column: str) -> dict[int, float]:
        """The score of each seed; nan of one that has none, as it diverged or failed."""
        known = self.runs.get(column, {})
        return {int(seed): float(known.get(seed, math.nan)) for seed in self.ended["seed"]}

    @property
    def scores(self) -> pd.Series:
        return pd.Series(self.values("test"), dtype=float).dropna()


@dataclass(frozen=True, eq=False)
class Ruling:
    """The candidate against one reference at one size; `difference` is the candidate's score minus its."""

    at: str
    candidate: CellRuns
    reference: CellRuns
    difference: Decision
    likelihood: Decision
    """Of the nats of a test reference, the candidate's minus the other's: less is better."""

    @property
    def finding(self) -> Standing:
        if self._lacks or (self._edges and not self.difference.is_open):
            return Standing.NONE
        return {"better": Standing.BETTER, "worse": Standing.WORSE}.get(
            self.difference.verdict, Standing.OPEN
        )

    @property
    def reasons(self) -> list[str]:
        """Sentences: why there is no verdict, or what is to be known beside it."""
        return self._lacks or [
            f"{side.cell.label} is best at the {side.found.edge} rate tried ({side.found.rate:g}): it may be "
            "better beyond"
            for side in self._edges
        ]

    @property
    def _lacks(self) -> list[str]:
        n = self.difference.n
        few = [f"{n} seeds in common; a verdict takes {FEWEST}"] if n < FEWEST else []
        return [*self.candidate.doubts, *self.reference.doubts, *few]

    @property
    def _edges(self) -> list[CellRuns]:
        """The sides that might do better at a rate that was not tried, the winner aside."""
        loser = {"better": [self.reference], "worse": [self.candidate]}
        both = [self.candidate, self.reference]
        return [side for side in loser.get(self.difference.verdict, both) if side.found.edge]

    @property
    def time(self) -> Interval:
        """Ratio of the seconds of a step: the geometric mean over common seeds; nan where it is not known."""
        mine, other = (
            np.log(side.runs["step_seconds"].astype(float)) for side in (self.candidate, self.reference)
        )
        found = interval((mine - other).dropna())
        low, mean, high = (math.exp(x) for x in (found.low, found.estimate, found.high))
        return replace(found, estimate=mean, low=low, high=high)

    @property
    def memory(self) -> float:
        """Ratio of medians: on a GPU of torch's peak, else of the bytes kept for the backward pass."""
        mine, other = self.candidate.runs, self.reference.runs
        for column in ("memory.peak_cuda", "memory.saved"):
            if all(column in runs and runs[column].notna().any() for runs in (mine, other)):
                return float(mine[column].median() / other[column].median())
        return math.nan

    @property
    def busy(self) -> str:
        """The words that say why times are not to be trusted; "" where they are."""
        shares = [side.runs["cpu_share"].astype(float) for side in (self.candidate, self.reference)]
        least = pd.concat(shares).min(skipna=False)
        if least >= IDLE:
            return ""
        known = f"busy: in one run the process had {least:.0%} of a core"
        return f"not to be trusted, the machine was {'not known to be idle' if pd.isna(least) else known}"

    @property
    def spread(self) -> float:
        """The standard deviation of the paired differences over seeds."""
        common = self.candidate.scores.sub(self.reference.scores).dropna()
        return float(common.std(ddof=1)) if len(common) > 1 else math.nan


def cell_runs(cell: Contender, every: pd.DataFrame, found: FoundRate, steps: int) -> CellRuns:
    """The runs of a cell out of `every` one in its folder that ended; `steps` are those of a whole run."""
    ended = every[(every["lr"] == found.rate) & (every["steps"] == steps)]
    runs = sound(ended)
    runs = runs[runs["state"] == "done"]
    runs = runs.set_index(pd.Index(runs["seed"].astype(int), name="seed")).sort_index()
    return CellRuns(cell, every, found, ended, runs, tuple(_doubts(cell.label, ended, runs)))


def _doubts(label: str, ended: pd.DataFrame, runs: pd.DataFrame) -> Iterator[str]:
    """Sentences on a cell that allow no verdict."""
    for state in ("diverged", "failed"):
        if len(lost := ended[ended["state"] == state]):
            why = f" ({lost['error.message'].iloc[0]})" if state == "failed" else ""
            yield f"{label} {state} in {len(lost)} of {len(ended)} runs at its chosen rate{why}"
    if "degenerate" in runs and (said := [text for text in runs["degenerate"] if text]):
        yield f"{label} has a degenerate result in {len(said)} of {len(runs)} runs ({said[0]})"
    if rising(runs):
        yield f"the training loss of {label} ends above its first value"


def rounds_of(comparisons: Sequence[Comparison], plan: Plan) -> Rounds:
    """The rounds over the cells of all comparisons, in their order: the references against the candidate."""
    keys = [{"at": c.at, "contender": cell.label} for c in comparisons for cell in c.cells]
    return Rounds(keys, replace(plan, against=f"contender={comparisons[0].candidate.label}"))


def seen_of(sides: Sequence[CellRuns], column: str = "test", better: str = "") -> Seen:
    """The scores of cells, in the order of `rounds_of`."""
    values = {(i, seed): x for i, side in enumerate(sides) for seed, x in side.values(column).items()}
    return Seen(values, better=better or _direction(sides))


def rulings(comparisons: Sequence[Comparison], sides: Sequence[CellRuns], plan: Plan) -> list[Ruling]:
    """The candidate against each reference at each size; `sides` are the cells in their order."""
    rounds = rounds_of(comparisons, plan)
    likely = rounds.decisions(seen_of(sides, "test_nll", "lower"))
    return [
        Ruling(str(rounds.keys[i]["at"]), sides[j], sides[i], d.reversed(), likely[i, j].reversed())
        for (i, j), d in rounds.decisions(seen_of(sides)).items()
    ]


def _direction(sides: Sequence[CellRuns]) -> str:
    frames = [side.runs for side in sides if len(side.runs)]
    return better(frames[0], "test") if frames else "higher"


def more_seeds(ruling: Ruling) -> tuple[float, float]:
    """The seeds that would show a difference as large as the one measured, and the least that is seen now.

    Both with 80 % power at the ruling's level; inf for more than 10,000, nan where nothing varies.
    """
    sd, found = ruling.spread, ruling.difference
    if not sd > 0:
        return math.nan, math.nan
    return seeds_for(found.estimate, sd, found.level), detectable(found.n, sd, level=found.level)
