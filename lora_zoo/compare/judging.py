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
from lora_zoo.claims.doubts import IDLE, rises
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
    finding: Standing
    difference: Decision
    likelihood: Decision
    """Of the nats of a test reference, the candidate's minus the other's: less is better."""
    reasons: tuple[str, ...]
    time: Interval
    """Ratio of the seconds of a step; nan where it is not known."""
    memory: float
    """Ratio of the bytes kept for the backward pass, or of the peak on a GPU."""
    busy: str
    """The sentence that says why times are not to be trusted; "" where they are."""

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
    if len(runs) and runs.apply(rises, axis=1).any():
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
    tests = rounds.decisions(seen_of(sides))
    likely = rounds.decisions(seen_of(sides, "test_nll", "lower"))
    return [
        _ruling(
            str(rounds.keys[i]["at"]), sides[candidate], sides[i], tests[i, candidate], likely[i, candidate]
        )
        for i, candidate in tests
    ]


def _ruling(
    at: str, candidate: CellRuns, reference: CellRuns, difference: Decision, likelihood: Decision
) -> Ruling:
    """The decisions are of the reference minus the candidate."""
    difference = difference.reversed()
    finding, reasons = _finding(candidate, reference, difference)
    return Ruling(
        at=at,
        candidate=candidate,
        reference=reference,
        finding=finding,
        difference=difference,
        likelihood=likelihood.reversed(),
        reasons=tuple(reasons),
        time=_ratio(candidate, reference, "step_seconds"),
        memory=_memory(candidate, reference),
        busy=_busy(candidate, reference),
    )


def _direction(sides: Sequence[CellRuns]) -> str:
    frames = [side.runs for side in sides if len(side.runs)]
    return better(frames[0], "test") if frames else "higher"


def _finding(candidate: CellRuns, reference: CellRuns, difference: Decision) -> tuple[Standing, list[str]]:
    reasons = [*candidate.doubts, *reference.doubts]
    if difference.n < FEWEST:
        reasons.append(f"{difference.n} seeds in common; a verdict takes {FEWEST}")
    if reasons:
        return Standing.NONE, reasons
    finding = {"better": Standing.BETTER, "worse": Standing.WORSE}.get(difference.verdict, Standing.OPEN)
    loser = {Standing.BETTER: [reference], Standing.WORSE: [candidate]}.get(finding, [candidate, reference])
    edges = [side for side in loser if side.found.edge]
    reasons = [
        f"{side.cell.label} is best at the {side.found.edge} rate tried ({side.found.rate:g}): it may be "
        "better beyond"
        for side in edges
    ]
    return (Standing.NONE if edges and finding != Standing.OPEN else finding), reasons


def _ratio(candidate: CellRuns, reference: CellRuns, column: str) -> Interval:
    """The geometric mean over common seeds of candidate over reference, with its 95 % interval."""
    if column not in candidate.runs or column not in reference.runs:
        return interval([])
    logs = np.log(candidate.runs[column].astype(float)) - np.log(reference.runs[column].astype(float))
    found = interval(logs.dropna())
    low, mean, high = (math.exp(x) for x in (found.low, found.estimate, found.high))
    return replace(found, estimate=mean, low=low, high=high)


def _memory(candidate: CellRuns, reference: CellRuns) -> float:
    """The ratio of medians; on a GPU of torch's peak, else of the bytes that autograd keeps."""
    for column in ("memory.peak_cuda", "memory.saved"):
        if all(column in side.runs and side.runs[column].notna().any() for side in (candidate, reference)):
            return float(candidate.runs[column].median() / reference.runs[column].median())
    return math.nan


def _busy(*sides: CellRuns) -> str:
    shares = pd.concat(
        [side.runs["cpu_share"] for side in sides if "cpu_share" in side.runs] or [pd.Series()]
    )
    known = pd.to_numeric(shares, errors="coerce").dropna()
    if len(known) < len(shares) or known.empty:
        return "it is not known that the machine did nothing else, so that times are not to be trusted"
    if known.min() < IDLE:
        return (
            f"busy machine: in one run the process had {known.min():.0%} of a core, so that times are not to "
            "be trusted"
        )
    return ""


def more_seeds(ruling: Ruling) -> tuple[float, float]:
    """The seeds that would show a difference as large as the one measured, and the least that is seen now.

    Both with 80 % power at the ruling's level; inf for more than 10,000, nan where nothing varies.
    """
    sd, found = ruling.spread, ruling.difference
    if not sd > 0:
        return math.nan, math.nan
    return seeds_for(found.estimate, sd, found.level), detectable(found.n, sd, level=found.level)
