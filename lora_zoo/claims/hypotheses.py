"""Hypotheses: a quantity with one value a seed, and the range in which a claim says that it lies."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, final

import pandas as pd
from scipy import stats

from lora_zoo.analysis.boundaries import FIRST, critical
from lora_zoo.analysis.estimates import Interval


class Range(NamedTuple):
    """An open interval of numbers."""

    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:.4g}"
        if math.isinf(self.low):
            return f"below {self.high:.4g}"
        return f"between {self.low:.4g} and {self.high:.4g}"

    def holds(self, low: float, high: float) -> bool | None:
        """True if low..high lies wholly inside, False if wholly outside, None if neither."""
        if self.low < low and high < self.high:
            return True
        return False if high <= self.low or self.high <= low else None


def above(bound: float) -> Range:
    return Range(bound, math.inf)


def below(bound: float) -> Range:
    return Range(-math.inf, bound)


def between(low: float, high: float) -> Range:
    return Range(low, high)


class Scale(NamedTuple):
    """A monotone scale on which a quantity's seeds are averaged, and the way back."""

    forward: Callable[[float], float]
    back: Callable[[float], float]


PLAIN = Scale(float, float)
LOGARITHM = Scale(math.log, math.exp)
_NEARLY_ONE = 1 - 1e-9
FISHER_Z = Scale(lambda r: math.atanh(min(max(r, -_NEARLY_ONE), _NEARLY_ONE)), math.tanh)


@dataclass(frozen=True)
class Hypothesis(ABC):
    """A quantity (a value a seed) and the range that is claimed for it."""

    label: str
    values: pd.Series
    claimed: Range
    unit: str
    most: int | None = field(default=None, kw_only=True)
    """The greatest number of seeds where they were added while scores were looked at (seed=auto)."""

    @abstractmethod
    def interval(self, level: float) -> Interval:
        """The quantity's confidence interval over seeds, in `unit`."""

    def quantile(self, level: float) -> float:
        """The standard errors from the mean to the end of its interval; nan for a single seed."""
        n = len(self.values)
        if self.most and n >= FIRST:
            return critical(1 - level, self.most)[min(n, self.most) - FIRST]
        return float(stats.t.ppf((1 + level) / 2, n - 1)) if n > 1 and not self.most else math.nan

    @abstractmethod
    def p_value(self) -> float:
        """The greatest 1 - level at which the interval still lies on one side of the range; 1 without one."""


@final
@dataclass(frozen=True)
class Sampled(Hypothesis):
    """A quantity that varies from seed to seed: the t interval of its mean on `scale`."""

    scale: Scale = PLAIN

    def interval(self, level: float) -> Interval:
        scaled = self._scaled()
        mean, half = float(scaled.mean()), self.quantile(level) * float(scaled.sem())
        estimate, low, high = map(self.scale.back, (mean, mean - half, mean + half))
        return Interval(estimate, low, high, len(scaled), level)

    def p_value(self) -> float:
        scaled = self._scaled()
        error = float(scaled.sem()) if len(scaled) > 1 else 0.0
        ends = (self.scale.forward(end) if math.isfinite(end) else end for end in self.claimed)
        return _p_value(float(scaled.mean()), error, len(scaled), Range(*ends))

    def _scaled(self) -> pd.Series:
        return self.values.map(self.scale.forward).astype(float)


@final
@dataclass(frozen=True)
class OnGrid(Hypothesis):
    """A quantity read off a grid of this step (the best of a few settings): each seed's is rounded.

    Rounding adds step²/12 to the variance, also where all seeds agree.
    """

    step: float

    def interval(self, level: float) -> Interval:
        n, mean = len(self.values), float(self.values.mean())
        half = self.quantile(level) * self._error() if n > 1 else math.nan
        return Interval(mean, mean - half, mean + half, n, level)

    def p_value(self) -> float:
        return _p_value(float(self.values.mean()), self._error(), len(self.values), self.claimed)

    def _error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt((float(self.values.var()) + self.step**2 / 12) / len(self.values))


@final
@dataclass(frozen=True)
class Counted(Hypothesis):
    """A quantity that is counted: the interval is the least and the greatest of its runs."""

    def interval(self, level: float) -> Interval:
        low, high = float(self.values.min()), float(self.values.max())
        return Interval(float(self.values.mean()), low, high, len(self.values), level)

    def p_value(self) -> float:
        return 0.0 if self.claimed.holds(self.values.min(), self.values.max()) is not None else 1.0


def _p_value(mean: float, error: float, n: int, claimed: Range) -> float:
    """The t test's against the nearest end of the range."""
    if not error > 0:
        return 1.0
    nearest = min(abs(mean - end) for end in claimed if math.isfinite(end))
    return 2 * float(stats.t.sf(nearest / error, n - 1))
