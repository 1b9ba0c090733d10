"""Decide a paired difference while its seeds come in: the error holds under a look after every seed.

    decide(differences, most=20)                 one comparison, seed by seed
    decide_all({"dora": d, "pissa": e}, most=20) a family: the error of all of its verdicts together

The intervals are repeated confidence intervals (Jennison & Turnbull 1989): mean ± c_n s / sqrt(n), with c_n
of `boundaries.critical`. All of them hold together with 1 - level, so that whatever is done after looking at
them keeps the error: stopping, going on, choosing which pair is shown. Why not an anytime-valid t test (the
scale-invariant mixture of Lai 1976; Wang & Ramdas 2023)? At 20 seeds at most it sees a difference of one
standard deviation in 88 % of cases, this one in 97 % (experiments/seeds_auto). The price: `most` is chosen
before the first look; raising it afterwards spends the error twice.

Differences are taken as normal. Those that are all equal have no t: their sign test decides, at half of the
level. The experiment's page shows what bounded, tied and skewed scores do to the error.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, final

import numpy as np

from lora_zoo.analysis.boundaries import FIRST, critical
from lora_zoo.analysis.estimates import NAN, Difference, Interval

Verdict = Literal["better", "worse", "same", "open"]
Key = TypeVar("Key", bound=Hashable)
_EQUAL = 1e-12
_REVERSED: dict[str, Verdict] = {"better": "worse", "worse": "better"}


@final
@dataclass(frozen=True)
class Decision:
    """The knowledge of one difference after `n` seeds.

    `low` and `high` are those of the sequential procedure, not of a fixed number of seeds, and infinite while
    it knows none; `after` is the number of seeds at which the verdict fell, None while it is open.
    """

    verdict: Verdict
    estimate: float
    low: float
    high: float
    n: int
    after: int | None
    margin: float
    level: float
    most: int
    rule: str

    def difference(self) -> Difference:
        """The same for a table; its margin does not count there."""
        resolved = self.low > 0 or self.high < 0 or (math.isinf(self.low) and not self.is_open)
        how = f"{self.rule}; holds at any stop"
        low, high = (x if math.isfinite(x) else NAN for x in (self.low, self.high))
        return Difference(self.estimate, low, high, NAN, self.n, None, how, 1 - self.level, resolved)

    @property
    def is_open(self) -> bool:
        return self.verdict == "open"

    @property
    def is_spent(self) -> bool:
        """Open for good: the greatest number of seeds has been looked at."""
        return self.is_open and self.n >= self.most

    def reversed(self) -> "Decision":
        """The same of the second minus the first."""
        verdict = _REVERSED.get(self.verdict, self.verdict)
        return replace(self, verdict=verdict, estimate=-self.estimate, low=-self.high, high=-self.low)

    def __str__(self) -> str:
        if self.after is not None:
            return f"{self.verdict} after {self.after} seeds"
        return f"open at the greatest number of seeds, {self.most}" if self.is_spent else f"open at {self.n}"


def decide(
    differences: Sequence[float],
    *,
    margin: float = 0.0,
    level: float = 0.05,
    most: int = 20,
    better: str = "higher",
) -> Decision:
    """Say whether the mean of `differences`, in the order of their seeds, is beyond ± `margin`.

    better or worse: the interval lies beyond the margin on that side; same: it lies within ± margin, which
    must then be above 0; else open. The interval of what is open holds the estimate. What is not finite is
    left out, and what comes after `most` is not seen.
    ValueError for a margin below 0, a level outside (0, 1), or fewer than 3 seeds at most.
    """
    _check(margin, level, most, better)
    x = np.asarray(differences, dtype=float)
    x = x[np.isfinite(x)][:most]
    low, high, after = _looked_at(x, margin, level, most)
    verdict, how = _verdict(low, high, margin, better), f"t boundary over {FIRST} to {most} seeds"
    equal = _seeds_of_sign_test(level)
    if equal <= min(len(x), most) and _all_equal(x[:equal]) and (margin or abs(x[0]) > 1e-12):
        verdict, how, after = _verdict(x[0], x[0], margin, better), f"sign test over {equal} seeds", equal
    estimate = float(x.mean()) if len(x) else NAN
    if verdict == "open":  # a late outlier may lie outside; a wider interval covers as well
        low, high = min(low, estimate), max(high, estimate)
    rule = f"{how}, level {level:.3g}"
    return Decision(verdict, estimate, low, high, len(x), after, margin, level, most, rule)


def decide_all(
    differences: Mapping[Key, Sequence[float]],
    *,
    margin: float = 0.0,
    level: float = 0.05,
    most: int = 20,
    better: str = "higher",
) -> dict[Key, Decision]:
    """Decide a family of comparisons: the chance of any false verdict is `level` (Bonferroni).

    Bonferroni and not Holm, so that each interval says what its verdict says, and any choice among them
    holds: of the pairs of a ranking, those with the best, though the best is chosen by the same numbers.
    """
    each = level / max(len(differences), 1)
    return {
        key: decide(d, margin=margin, level=each, most=most, better=better) for key, d in differences.items()
    }


def interval_at_stop(values: Sequence[float], most: int, level: float = 0.95) -> Interval:
    """The interval for a mean over seeds that were stopped by a look at scores: `critical` instead of t."""
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    mean = float(x.mean()) if len(x) else NAN
    if len(x) < FIRST:
        return Interval(mean, NAN, NAN, len(x), level)
    half = critical(1 - level, most)[min(len(x), most) - FIRST] * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half, len(x), level)


def _looked_at(x: np.ndarray, margin: float, level: float, most: int) -> tuple[float, float, int | None]:
    """The interval that all looks so far leave, and the number of seeds at the first one that decides."""
    n = np.arange(1, len(x) + 1)
    shift = x - x[:1]
    mean = shift.cumsum() / n
    sd = np.sqrt(np.maximum((shift**2).cumsum() - n * mean**2, 0) / np.maximum(n - 1, 1))
    spread = np.maximum.accumulate(x) - np.minimum.accumulate(x)
    vary = (n >= FIRST) & (spread > _EQUAL * np.maximum(1.0, np.maximum.accumulate(np.abs(x))))
    c = np.full(len(x), math.inf)
    c[FIRST - 1 :] = critical(level, most)[: max(len(x) - FIRST + 1, 0)]
    half = np.where(vary, c * np.maximum(sd, 1e-300) / np.sqrt(n), math.inf)
    lows = np.maximum.accumulate(x[:1] + mean - half)
    highs = np.minimum.accumulate(x[:1] + mean + half)
    agree = lows <= highs
    lows, highs, n = lows[agree], highs[agree], n[agree]  # where looks contradict, what was known stays
    if not len(n):
        return -math.inf, math.inf, None
    decided = (lows > margin) | (highs < -margin) | bool(margin) & (lows >= -margin) & (highs <= margin)
    after = int(n[decided.argmax()]) if decided.any() else None
    return float(lows[-1]), float(highs[-1]), after


def _verdict(low: float, high: float, margin: float, better: str) -> Verdict:
    if low > margin:
        return "better" if better == "higher" else "worse"
    if high < -margin:
        return "worse" if better == "higher" else "better"
    return "same" if margin and low >= -margin and high <= margin else "open"


def _seeds_of_sign_test(level: float) -> int:
    """The seeds whose equal differences are as unlikely as half of `level`: 2^(1-n)."""
    return max(FIRST, math.ceil(1 + math.log2(2 / level)))


def _all_equal(x: np.ndarray) -> bool:
    return bool(np.ptp(x) <= _EQUAL * max(1.0, float(np.abs(x).max())))


def _check(margin: float, level: float, most: int, better: str) -> None:
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin must be 0 or more; got {margin}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    if most < FIRST:
        raise ValueError(f"most must be {FIRST} seeds or more; got {most}")
    if better not in ("higher", "lower"):
        raise ValueError(f"better must be higher or lower; got {better!r}")
