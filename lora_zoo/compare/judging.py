"""Verdicts of a comparison, from the frames of its runs: pure functions that train nothing.

The rate of a cell is chosen by its mean validation over the tuning seeds; test is compared over the seeds of
the chosen rate, paired by seed, by `lora_zoo.analysis.sequential`: the error holds though the seeds end as
soon as all is decided. With m verdicts each is at the level 1 - 0.05 / m (Bonferroni), so that all hold
together with 95 %, and a verdict is *better* or *worse* where its interval lies on one side of 0.

The negative log-likelihood of the test references, where runs keep it, is judged alike as a second score
with less noise; it is said beside the verdict and makes none.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import pandas as pd

from lora_zoo.analysis.integrity import sound
from lora_zoo.analysis.power import detectable, seeds_for
from lora_zoo.analysis.protocol import better
from lora_zoo.analysis.sequential import Decision, decide
from lora_zoo.analysis.statistics import Interval, interval
from lora_zoo.claims.doubts import IDLE, rises
from lora_zoo.compare.contenders import Contender
from lora_zoo.compare.planning import beyond

LEVEL = 0.95
FEWEST = 3


class Standing(StrEnum):
    """The outcome of one comparison."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "not distinguishable"
    NONE = "no verdict"


@dataclass(frozen=True, eq=False)
class CellRuns:
    """A cell's runs that count: `tried` rates on the tuning seeds, `runs` of the `chosen` one, by seed."""

    cell: Contender
    every: pd.DataFrame
    tried: tuple[float, ...]
    chosen: float | None
    runs: pd.DataFrame
    doubts: tuple[str, ...]
    """Reasons why no verdict may rest on it."""
    edge: bool = False
    """True where the chosen rate is the least or the greatest of those tried."""

    @property
    def scores(self) -> pd.Series:
        return self.runs["test"].astype(float) if "test" in self.runs else pd.Series(dtype=float)


@dataclass(frozen=True)
class Family:
    """The verdicts that hold together: `number` of them, on at most `most` seeds, planned `plans` times."""

    number: int
    most: int
    plans: int = 1

    @property
    def level(self) -> float:
        """The error of one verdict; a plan that was made anew after a look spends it again."""
        return (1 - LEVEL) / (max(self.number, 1) * max(self.plans, 1))


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
        common = _differences(self.candidate, self.reference, "test")
        return float(common.std(ddof=1)) if len(common) > 1 else math.nan


def best_rate(frame: pd.DataFrame, tuning: int) -> float | None:
    """The rate of the best mean validation over the tuning seeds; None where no rate has them all."""
    trials = frame[(frame["state"] == "done") & (frame["seed"] < tuning)]
    if trials.empty or trials["validation"].isna().all():
        return None
    means = trials.groupby("lr")["validation"].agg(["mean", "count"])
    means = means["mean"][means["count"] == tuning]
    if means.empty:
        return None
    return float(means.idxmax() if better(trials, "validation") == "higher" else means.idxmin())


def cell_runs(cell: Contender, frame: pd.DataFrame, tried: Sequence[float], tuning: int) -> CellRuns:
    """The runs of a cell out of all in its folder: `tried` rates on `tuning` seeds, and all of the best."""
    frame = frame[frame["lr"].isin(tried)]
    chosen = best_rate(frame, tuning) if len(frame) else None
    if chosen is None:
        doubt = f"{cell.label} has no rate whose runs all ended well on the tuning seeds"
        return CellRuns(cell, frame, tuple(tried), None, frame.iloc[:0], (doubt,))
    own = frame[frame["lr"] == chosen]
    runs = sound(own)
    runs = runs[runs["state"] == "done"]
    runs = runs.set_index(pd.Index(runs["seed"].astype(int), name="seed")).sort_index()
    doubts = tuple(_doubts(cell.label, own, runs, tried))
    return CellRuns(cell, frame, tuple(tried), chosen, runs, doubts, beyond(chosen, tried) is not None)


def _doubts(label: str, own: pd.DataFrame, runs: pd.DataFrame, tried: Sequence[float]) -> Iterator[str]:
    """Sentences on a cell that allow no verdict."""
    if lost := int((own["state"] == "diverged").sum()):
        yield f"{label} diverged in {lost} of {len(own)} runs at its chosen rate"
    if "degenerate" in runs and (said := [text for text in runs["degenerate"] if text]):
        yield f"{label} has a degenerate result in {len(said)} of {len(runs)} runs ({said[0]})"
    if len(tried) < 2:
        yield f"{label} is untuned: one rate was tried"
    if len(runs) and runs.apply(rises, axis=1).any():
        yield f"the training loss of {label} ends above its first value"


def rulings(at: str, candidate: CellRuns, references: Sequence[CellRuns], family: Family) -> list[Ruling]:
    """The candidate against each reference, as verdicts of a family."""
    return [_ruling(at, candidate, reference, family) for reference in references]


def _ruling(at: str, candidate: CellRuns, reference: CellRuns, family: Family) -> Ruling:
    direction = _direction(candidate, reference)
    difference = _decided(candidate, reference, "test", direction, family)
    finding, reasons = _finding(candidate, reference, difference)
    return Ruling(
        at=at,
        candidate=candidate,
        reference=reference,
        finding=finding,
        difference=difference,
        likelihood=_decided(candidate, reference, "test_nll", "lower", family),
        reasons=tuple(reasons),
        time=_ratio(candidate, reference, "step_seconds"),
        memory=_memory(candidate, reference),
        busy=_busy(candidate, reference),
    )


def _decided(
    candidate: CellRuns, reference: CellRuns, column: str, direction: str, family: Family
) -> Decision:
    common = _differences(candidate, reference, column)
    return decide(list(common), level=family.level, most=max(family.most, FEWEST), better=direction)


def _differences(candidate: CellRuns, reference: CellRuns, column: str) -> pd.Series:
    """Candidate minus reference over the seeds that both have, in their order."""
    if column not in candidate.runs or column not in reference.runs:
        return pd.Series(dtype=float)
    return (
        candidate.runs[column].astype(float).sub(reference.runs[column].astype(float)).dropna().sort_index()
    )


def _direction(*sides: CellRuns) -> str:
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
    edges = [side for side in loser if side.edge]
    reasons = [
        f"{side.cell.label} is best at the edge of the rates tried ({side.chosen:g}): it may be better beyond"
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
