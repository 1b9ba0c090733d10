"""When a claim counts as supported: one rule for all of them.

A claim is one or more *comparisons*. A comparison is a quantity with one value a seed (a difference between
two paired runs, a ratio, a slope, …) and the open range in which the claim says that it lies, any margin
included: (0, ∞) for "X beats Y", (-m, ∞) for "X is as good as Y" (non-inferiority), (-m, m) for "X and Y are
alike" (TOST, each of its two tests at half of 1 - level), (m, ∞) for "the sizes differ by more than m".

* A comparison **holds** if the whole confidence interval of its mean lies in the range, **fails** if the
  whole interval lies outside, and is **open** otherwise, and always with fewer than 3 seeds.
* The level is 95 % for the claim as a whole: with m comparisons, Holm's: they are judged from the clearest
  on, the k-th by its interval of level 1 - 0.05 / (m - k + 1), and with the first open one all that follow
  are open. The interval that is printed is the one that was judged.
* A claim is **supported** if every comparison holds, **not supported** if one fails, else **inconclusive**.
  A claim about *most* of its comparisons needs more than half of them to hold; if half of them or more fail,
  it is not supported.
* Every model and task in the results makes its own comparisons; none are averaged.
* Runs are paired by seed: intervals are Student's t of the differences, of logarithms for ratios and of
  Fisher's z for correlations. A quantity that is read off a grid (the best of six ratios) has the rounding's
  variance, step²/12, besides. Equal values in all seeds leave no spread to judge by and stay open, unless the
  quantity is counted and not sampled (bytes, ranks); a counted one holds or fails as all of its runs do.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, final

import pandas as pd
from scipy import stats

from lora_zoo.analysis.statistics import Interval, interval

LEVEL = 0.95
SEEDS = 3


class Status(StrEnum):
    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not run"
    NOT_BUILT = "not built"
    NOT_MEASURABLE = "not measurable"


@dataclass(frozen=True)
class Verdict:
    """A status, the interval of the comparison that decided (in `unit`), all of them in words, the seeds."""

    status: Status
    said: str
    effect: Interval | None = None
    unit: str = ""
    n: int = 0


class Range(NamedTuple):
    """The open interval in which a claim says that a quantity lies."""

    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:.4g}"
        if math.isinf(self.low):
            return f"below {self.high:.4g}"
        return f"between {self.low:.4g} and {self.high:.4g}"

    def side(self, low: float, high: float) -> bool | None:
        """Whether low..high lies wholly inside (True), wholly outside (False) or neither (None)."""
        if self.low < low and high < self.high:
            return True
        return False if high <= self.low or self.high <= low else None


def above(bound: float) -> Range:
    return Range(bound, math.inf)


def below(bound: float) -> Range:
    return Range(-math.inf, bound)


def within(low: float, high: float) -> Range:
    return Range(low, high)


class Scale(NamedTuple):
    """Where a quantity's seeds are averaged, and back: monotone."""

    forward: Callable[[float], float]
    back: Callable[[float], float]


PLAIN = Scale(float, float)
RATIO = Scale(math.log, math.exp)
_NEARLY_ONE = 1 - 1e-9
CORRELATION = Scale(lambda r: math.atanh(min(max(r, -_NEARLY_ONE), _NEARLY_ONE)), math.tanh)


def doubt(mean: float, error: float, n: int, claimed: Range) -> float:
    """1 less the level of the widest interval that still lies on one side of the range."""
    if not error > 0:
        return 1.0
    p_values = [
        2 * float(stats.t.sf(abs(mean - end) / error, n - 1)) for end in claimed if math.isfinite(end)
    ]
    return max(p_values) if claimed.low < mean < claimed.high else min(p_values)


@dataclass(frozen=True)
class Comparison(ABC):
    """One quantity (a value a seed) and the range that is claimed for it."""

    label: str
    values: pd.Series
    claimed: Range
    unit: str

    @abstractmethod
    def interval(self, level: float) -> Interval:
        """The quantity's confidence interval over seeds, in `unit`."""

    @abstractmethod
    def doubt(self) -> float:
        """The greatest 1 - level at which the interval still lies on one side; 1 where none does."""


@final
@dataclass(frozen=True)
class Sampled(Comparison):
    """A quantity that varies from seed to seed: Student's t interval of its mean on `scale`."""

    scale: Scale = PLAIN

    def interval(self, level: float) -> Interval:
        made = interval(self._scaled(), level)
        estimate, low, high = (self.scale.back(x) for x in (made.estimate, made.low, made.high))
        return Interval(estimate, low, high, made.n, level)

    def doubt(self) -> float:
        scaled = self._scaled()
        error = float(scaled.sem()) if len(scaled) > 1 else 0.0
        ends = (self.scale.forward(end) if math.isfinite(end) else end for end in self.claimed)
        return doubt(float(scaled.mean()), error, len(scaled), Range(*ends))

    def _scaled(self) -> pd.Series:
        return self.values.map(self.scale.forward).astype(float)


@final
@dataclass(frozen=True)
class OnGrid(Comparison):
    """A quantity read off a grid of this step (the best of a few settings): each seed's is rounded.

    Rounding adds step²/12 to the variance, also where all seeds agree.
    """

    step: float

    def interval(self, level: float) -> Interval:
        n, mean = len(self.values), float(self.values.mean())
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * self._error() if n > 1 else math.nan
        return Interval(mean, mean - half, mean + half, n, level)

    def doubt(self) -> float:
        return doubt(float(self.values.mean()), self._error(), len(self.values), self.claimed)

    def _error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt((float(self.values.var()) + self.step**2 / 12) / len(self.values))


@final
@dataclass(frozen=True)
class Counted(Comparison):
    """A quantity that is counted: the interval is the least and the greatest of its runs."""

    def interval(self, level: float) -> Interval:
        low, high = float(self.values.min()), float(self.values.max())
        return Interval(float(self.values.mean()), low, high, len(self.values), level)

    def doubt(self) -> float:
        return 0.0 if self.claimed.side(self.values.min(), self.values.max()) is not None else 1.0


class Judged(NamedTuple):
    comparison: Comparison
    interval: Interval
    holds: bool | None

    def __str__(self) -> str:
        word = {True: "holds", False: "fails", None: "open"}[self.holds]
        return f"{self.comparison.label}: {shown(self.interval)}, claimed {self.comparison.claimed}: {word}"


def shown(interval: Interval) -> str:
    """An interval in words, with its level and the number of seeds."""
    if math.isnan(interval.low):
        return f"{interval.estimate:.4g} (n={interval.n})"
    level = f"{100 * interval.level:.4g} %"
    return f"{interval.estimate:.4g} [{interval.low:.4g}, {interval.high:.4g}] ({level}, n={interval.n})"


def judged(comparisons: Sequence[Comparison]) -> list[Judged]:
    """Each comparison by Holm's procedure, the clearest first."""
    done: list[Judged] = []
    level, stopped = LEVEL, False
    for rank, comparison in enumerate(sorted(comparisons, key=_doubt)):
        level = level if stopped else 1 - (1 - LEVEL) / (len(comparisons) - rank)
        enough = len(comparison.values) >= SEEDS and _doubt(comparison) < 1
        made = comparison.interval(level)
        holds = comparison.claimed.side(made.low, made.high) if enough and not stopped else None
        stopped = stopped or holds is None
        done.append(Judged(comparison, made, holds))
    return done


def _doubt(comparison: Comparison) -> float:
    return comparison.doubt() if len(comparison.values) >= SEEDS else 1.0


Rule = Callable[[Sequence[bool | None]], Status]


def every(holds: Sequence[bool | None]) -> Status:
    if False in holds:
        return Status.NOT_SUPPORTED
    return Status.SUPPORTED if holds and all(holds) else Status.INCONCLUSIVE


def most(holds: Sequence[bool | None]) -> Status:
    if 2 * sum(h is True for h in holds) > len(holds):
        return Status.SUPPORTED
    failed = sum(h is False for h in holds)
    return Status.NOT_SUPPORTED if failed and 2 * failed >= len(holds) else Status.INCONCLUSIVE


def verdict(comparisons: Sequence[Comparison], missing: Sequence[str], rule: Rule = every) -> Verdict:
    """The claim's verdict from its comparisons; `missing` says what could not be compared, and is printed.

    A claim is not supported by what is there while a comparison that it needs is missing.
    """
    results = judged(comparisons)
    status = rule([result.holds for result in results])
    if missing and status is Status.SUPPORTED:
        status = Status.INCONCLUSIVE
    said = [*map(str, results), *missing]
    few = min((len(c.values) for c in comparisons), default=SEEDS)
    if few < SEEDS:
        said.append(f"fewer than {SEEDS} seeds decide nothing")
    if not results:
        return Verdict(Status.INCONCLUSIVE, "; ".join(said) or "nothing to compare")
    shown = _decisive(results, status)
    n = min(len(c.values) for c in comparisons)
    return Verdict(status, "; ".join(said), shown.interval, shown.comparison.unit, n)


def _decisive(results: Sequence[Judged], status: Status) -> Judged:
    """The weakest comparison of those that hold, the clearest of those that fail, or of the open ones."""
    wanted = {Status.SUPPORTED: True, Status.NOT_SUPPORTED: False}.get(status)
    fitting = [result for result in results if result.holds is wanted] or list(results)
    return fitting[-1] if status is Status.SUPPORTED else fitting[0]
